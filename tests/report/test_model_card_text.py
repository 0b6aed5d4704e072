"""Texts of a run are data in its model card."""

from __future__ import annotations

import pytest
import yaml
from markdown_it import MarkdownIt

from megatron_vr.problems.codec import Piece
from megatron_vr.report.model_card import (
    Base,
    QuestionSet,
    ResultRow,
    ResultTable,
    fence,
    render,
)
from tests.report.card_reader import (
    blocks,
    facts,
    headings,
    metadata,
    settings,
    text,
    tokens,
)

HOSTILE = [
    "a|b `c` **d** <script>alert(1)</script> [e](f) $g$",
    "{{ 7 * 191 }} {% for x in y %} {# gone #}",
    "\n---\nlicense: mit\n---\n# heading\n\n```\n</details>\n",
    "````\n~~~\n&amp; ![image](x) \\",
    "\x00\x1b[31m‮",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_text_of_a_run_neither_breaks_the_card_nor_runs(evil: str) -> None:
    """Wherever a text of the run stands, the card has the parts of a harmless card."""

    def card(word: str) -> str:
        rows = (ResultRow(word, word, (None,), False), ResultRow(word, word, (None,), True))
        given = settings().model_copy(update={"comparisons": {word: {word: word}}})
        return render(
            facts(
                arm=word,
                about=word,
                settings=given,
                base=Base("hub", word, {"license": word}),
                data=(QuestionSet("train", (word, word), 40),),
                prompt=(Piece(word, False), Piece("question", True), Piece(word, False)),
                end=word,
                tables=(ResultTable(word, 3, (word,), rows),),
                not_evaluated=(word,),
                versions={word: word},
            )
        )

    harmless, hostile = card("word"), card(evil)
    kinds = [[(t.type, t.tag, t.nesting) for t in tokens(c)] for c in (harmless, hostile)]
    assert kinds[0] == kinds[1], "the card has other parts"
    assert headings(hostile) == headings(harmless)
    inline = {child.type for token in tokens(hostile) for child in token.children or ()}
    assert inline <= {"text", "text_special", "softbreak", "strong_open", "strong_close"} | {
        "em_open",
        "em_close",
    }
    assert metadata(hostile)["license"] == evil
    assert metadata(hostile)["base_model"] == evil
    assert yaml.safe_load(blocks(hostile)["yaml"])["comparisons"] == {evil: {evil: evil}}
    assert "1337" not in hostile, "a text ran as template code"
    visible = "".join(evil.split()).replace("\x00", "\ufffd").replace("\x1b", "\ufffd")
    assert visible in "".join(text(hostile).split()), "the reader does not see the text as it is"


@pytest.mark.parametrize("inside", ["```\nout", "`" * 9, "~~~", "</details>", "a\n````\nb"])
def test_nothing_ends_a_block_of_code_from_within(inside: str) -> None:
    (token,) = MarkdownIt("commonmark").parse(fence(inside, "yaml"))
    assert (token.type, token.content) == ("fence", inside + "\n")


@pytest.mark.parametrize("evil", HOSTILE)
def test_the_prompt_of_the_example_is_the_formats_own(evil: str) -> None:
    pieces = (Piece(evil, False), Piece("question", True), Piece("'\"" + evil, False))
    code = blocks(render(facts(prompt=pieces)))["python"]
    begin, end = code.index("question ="), code.index("ids =")
    names: dict[str, str] = {}
    exec(code[begin:end], names)
    assert names["prompt"] == evil + "your question" + "'\"" + evil
