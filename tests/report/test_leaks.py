"""The leak check: runs whose traces state the answer early in known shares."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pyarrow.parquet as pq
import pytest

from megatron_vr.problems.format_rules import SHIPPED, TraceMarkers
from megatron_vr.problems.problem import Problem
from megatron_vr.report import leaked
from megatron_vr.report.blocks import Missing, Table, Words
from megatron_vr.report.leaked import MOST_QUESTIONS, MOST_TRACES, Asked, Leak, pair_up, trace_of
from megatron_vr.report.page import write_report
from megatron_vr.report.plots.lines import line_panels
from megatron_vr.report.run_folder import read_run
from megatron_vr.report.sections.caution import caution
from megatron_vr.report.sections.leaks import bars, leaks_section, over_iterations, positions
from megatron_vr.traces.leaks import first_mention
from tests.report.page_reader import PageReader
from tests.report.synthetic import Written, write_run

pytestmark = pytest.mark.xdist_group("report-page")

Teller = Callable[[str, int], str]  # (question's id, index) → the trace's text

POSTERIOR = "iteration-1/sample-posterior"
BLIND = "comparisons/variational-no-hint/iteration-1/sample-posterior"
ROLLOUTS = "comparisons/rft/iteration-1/sample-policy"
SUSPICION = "Posterior collapse is suspected"
PLAIN = "c1 " * 19 + "c2"
MOVES = ("R R", "D D")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """A run none of whose traces has any move in it."""
    return write_run(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture
def run(plain: Written, tmp_path: Path) -> Written:
    """The same run, the test's own to change."""
    shutil.copytree(plain.folder, tmp_path / "run", symlinks=True)
    return replace(plain, folder=tmp_path / "run")


def retell(written: Written, place: str, tell: Teller, column: str = "trace_text") -> None:
    """Give the stage's traces other texts."""
    parts = sorted((written.folder / place).glob("part-*.parquet"))
    assert parts
    for part in parts:
        table = pq.read_table(part)
        keys = zip(*(table.column(c).to_pylist() for c in ("problem_id", "index")), strict=True)
        texts = [tell(*key) for key in keys]
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, table.schema.field(column), [texts]), part)


def answers(written: Written, which: str = "train") -> dict[str, str]:
    return {problem.id: problem.answer for problem in written.problems[which]}


def leaky(written: Written, leaks: Callable[[int, int], bool], which: str = "train") -> Teller:
    """Traces that begin with the answer where `leaks(number of the question, index)`."""
    said = answers(written, which)
    number = {owner: place for place, owner in enumerate(said)}
    return lambda owner, k: f"{said[owner]} {PLAIN}" if leaks(number[owner], k) else PLAIN


def first(hits: int) -> Callable[[int, int], bool]:
    """The first `hits` traces of every question."""
    return lambda number, k: k < hits


def page_of(written: Written) -> PageReader:
    return PageReader(write_report(written.folder).read_text(encoding="utf-8"))


def cells_of(written: Written) -> dict[str, list[str]]:
    """Sampler → cells of the section's table, as `PageReader` has them."""
    (table,) = [b for b in leaks_section(read_run(written.folder)).blocks if isinstance(b, Table)]
    return {
        line.name: [f"{cell.text}\n{cell.small}".strip() for cell in line.cells]
        for line in table.lines
    }


def words_of(written: Written) -> str:
    blocks = leaks_section(read_run(written.folder)).blocks
    return " ".join(block.text for block in blocks if isinstance(block, Words | Missing))


def cautions(written: Written) -> list[str]:
    points = caution(read_run(written.folder), {}, []).points
    return [point for point in points if SUSPICION in point]


def test_the_page_has_the_known_shares_of_q_and_of_the_policy(run: Written) -> None:
    retell(run, POSTERIOR, leaky(run, lambda number, k: k < (3 if number % 2 else 1)))
    page = page_of(run)
    error = f"±{100 * stdev([0.75, 0.25] * 20) / math.sqrt(40):.1f}"
    cells = page.table("sampler", "answer stated early")
    assert cells["posterior"] == [
        *("40", "160", f"50.0%\n{error}", "0.0%\n±0.0", f"+50.0\n{error}", "50.0%")
    ]
    nothing = ["0.0%\n±0.0", "0.0%\n±0.0", "+0.0\n±0.0", "0.0%"]
    assert cells["posterior without hint"] == cells["rollouts of π₀"] == ["40", "160", *nothing]
    assert cells["π₁ on held-out questions"] == ["30", "120", *nothing]
    assert (
        "The posterior states the hint's answer early in 50.0% of its traces (0.0% by chance, "
        f"+50.0 {error.replace('±', '± ')} points: clearly more than chance)." in page.text
    )
    assert "Without a hint, rollouts of π₀: none of its traces." in page.text
    (told,) = cautions(run)
    assert told in page.text


def test_only_the_first_tenth_is_early(run: Written) -> None:
    said = answers(run)

    def tell(owner: str, k: int) -> str:
        before, after = k, 20 - k - len(said[owner].split())
        return " ".join(["c1"] * before + [said[owner]] + ["c2"] * after)

    retell(run, POSTERIOR, tell)
    cells = cells_of(run)["posterior"]
    assert cells[2] == "50.0%\n±0.0", "after 0 and 1 of 20 words, not after 2 and 3"
    assert cells[5] == "100.0%"


def test_chance_is_the_share_of_another_questions_answer(tmp_path: Path) -> None:
    def two_answers(problem: Problem) -> Problem:
        return replace(problem, answer=MOVES[int(problem.id, 16) % 2])

    written = write_run(tmp_path / "run", edit=two_answers)
    said = answers(written)
    assert set(said.values()) == set(MOVES)

    def tell(owner: str, k: int) -> str:
        own, other = sorted(MOVES, key=lambda moves: moves != said[owner])
        return [f"{own} {PLAIN}", f"{other} {PLAIN}", f"{PLAIN} {own}", PLAIN][k]

    retell(written, POSTERIOR, tell)
    cells = cells_of(written)["posterior"]
    assert cells[2:] == ["25.0%\n±0.0", "25.0%\n±0.0", "+0.0\n±0.0", "50.0%"]
    assert cautions(written) == [], "as often as by chance"


def test_traces_that_state_the_answer_call_for_caution(run: Written) -> None:
    retell(run, POSTERIOR, leaky(run, first(1)))
    (told,) = cautions(run)
    assert "within the first tenth of 25.0% of its traces, +25.0 ± 0.0 points more" in told


@pytest.mark.parametrize(
    ("leaks", "called"),
    [
        (lambda number, k: number < 10 and k == 0, True),  # 6.3% of the traces, error 1.7
        (lambda number, k: number < 7 and k == 0, False),  # 4.4%: clear, but little
        (lambda number, k: number < 3, False),  # 7.5%, but of three questions: error 4.2
        (lambda number, k: False, False),
    ],
)
def test_little_and_noise_call_for_none(
    run: Written, leaks: Callable[[int, int], bool], called: bool
) -> None:
    retell(run, POSTERIOR, leaky(run, leaks))
    assert bool(cautions(run)) == called


def test_a_sampler_without_a_hint_cannot_collapse_into_it(run: Written) -> None:
    retell(run, BLIND, leaky(run, first(4)))
    retell(run, ROLLOUTS, leaky(run, first(4)))
    assert cautions(run) == []
    cells = cells_of(run)
    assert cells["posterior without hint"][2] == cells["rollouts of π₀"][2] == "100.0%\n±0.0"


def test_without_rollouts_the_evaluation_is_shown_and_said_to_be(tmp_path: Path) -> None:
    written = write_run(tmp_path / "run", stop_at="sample-policy")
    held_out = ["π₀ on held-out questions", "π₁ on held-out questions"]
    assert list(cells_of(written)) == ["posterior", *held_out]
    assert "π has no rollouts on the posterior's questions" in words_of(written)


def test_what_follows_the_marker_is_not_in_the_trace(run: Written) -> None:
    said, early = answers(run, "test"), leaky(run, lambda number, k: number < 6, "test")

    def tell(owner: str, k: int) -> str:
        return f"{early(owner, k)} </think> {said[owner]}"

    retell(run, "iteration-1/evaluate", tell, "output_text")
    cells = cells_of(run)["π₁ on held-out questions"]
    assert cells[2].startswith("20.0%")
    assert cells[5] == "20.0%"


def test_an_output_is_cut_at_the_formats_markers() -> None:
    markers = TraceMarkers(open="<|begin|>\n\n", close="<|end|>\n\n")
    assert trace_of("<|begin|>\n\nz z<|end|>\n\n<|begin_of_solution|>y", markers) == "z z"
    assert trace_of("<|begin|>\n\nz that never", markers) == "z that never"
    assert trace_of("z </think> y <eos>", TraceMarkers(open="", close="</think>")) == "z "


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Two iterations: q leaks in 1, then 3 of 4 traces; π's outputs in 0, 1, 2 of the first 4."""
    written = write_run(tmp_path_factory.mktemp("runs") / "twice", "run.iterations=2")
    for t, hits in ((1, 1), (2, 3)):
        retell(written, f"iteration-{t}/sample-posterior", leaky(written, first(hits)))
    for t in (0, 1, 2):
        tell = leaky(written, first(t), "test")
        retell(written, f"iteration-{t}/evaluate", tell, "output_text")
    return written


@pytest.fixture(scope="module")
def page_of_twice(twice: Written) -> PageReader:
    return page_of(twice)


def leaks_of(written: Written) -> list[Leak]:
    run = read_run(written.folder)
    asked, held_out = leaked.read_checked(run, "train"), leaked.read_checked(run, "test")
    return [
        *leaked.read_posterior_leaks(run, asked),
        *leaked.read_rollout_leaks(run, asked),
        *leaked.read_held_out_leaks(run, held_out),
    ]


@pytest.mark.usefixtures("page_of_twice")
def test_two_iterations_are_drawn_over_the_models_steps(twice: Written) -> None:
    panel = over_iterations(leaks_of(twice))
    drawn = {line.name: (list(line.x), list(line.y)) for line in panel.lines if not line.dashed}
    assert drawn == {
        "q": ([1, 2], [25, 75]),
        "q without hint": ([1, 2], [0, 0]),
        "π rollouts": ([0], [0]),  # those of the second iteration are another row's
        "π held out": ([0, 1, 2], [0, 25, 50]),
    }
    by_chance = [line for line in panel.lines if line.dashed]
    assert [list(line.x) for line in by_chance] == [x for x, _ in drawn.values()]
    assert {share for line in by_chance for share in line.y} == {0}
    assert all(len(line.errors) == len(line.y) for line in panel.lines)
    picture = (twice.folder / "report" / "leaks.png").read_bytes()
    assert picture == line_panels([panel], dots=True), "the page has another picture"


def test_each_iteration_has_its_table_and_its_caution(
    twice: Written, page_of_twice: PageReader
) -> None:
    page = page_of_twice
    tables = [table for table in page.tables if any("answer stated early" in row for row in table)]
    shares = [
        [row[3].split("\n")[0] for row in table if row[0].startswith("posterior\n")]
        for table in tables
    ]
    assert shares == [["25.0%"], ["75.0%"]]
    names = [[row[0].split("\n")[0] for row in table[2:]] for table in tables]
    held_out = [[name[:2] for name in row if "held-out" in name] for row in names]
    assert held_out == [["π₀", "π₁"], ["π₂"]]
    assert [f"in iteration {t}" in text for t, text in enumerate(cautions(twice), 1)] == [True] * 2
    plots = sorted(path.stem for path in (twice.folder / "report").glob("*leak*.png"))
    assert plots == ["iteration-1-leak-positions", "iteration-2-leak-positions", "leaks"]


def test_one_iteration_is_drawn_as_pairs_of_bars(run: Written) -> None:
    retell(run, POSTERIOR, leaky(run, lambda number, k: k < (3 if number % 2 else 1)))
    leaks = leaks_of(run)
    panel = bars(leaks)
    own, chance = panel.series
    at = [leak.source.name for leak in leaks].index("posterior")
    assert (own.values[at], chance.values[at]) == (0.5, 0.0)
    assert own.errors[at] == pytest.approx(stdev([0.75, 0.25] * 20) / math.sqrt(40))


def test_places_are_drawn_as_cumulative_shares_of_all_traces(run: Written) -> None:
    said = answers(run)

    def tell(owner: str, k: int) -> str:
        words = ["c1"] * 10
        if k < 3:
            words[(0, 5, 8)[k]] = said[owner].replace(" ", "")
        return " ".join(words)

    retell(run, POSTERIOR, tell)
    panel = positions([leak for leak in leaks_of(run) if leak.source.name == "posterior"])
    own, chance = panel.lines
    assert list(zip(own.x, own.y, strict=True)) == [
        *((0, 0), (0, 0), (0, 25), (50, 25), (50, 50), (80, 50), (80, 75), (100, 75))
    ]
    assert set(chance.y) == {0}


def test_an_answer_that_stands_in_the_question_is_left_out(tmp_path: Path) -> None:
    def in_question(p: Problem) -> Problem:
        return p if int(p.id, 16) % 4 else replace(p, question=f"{p.question} {p.answer}")

    written = write_run(tmp_path / "run", edit=in_question)
    stated = {owner for owner in answers(written) if int(owner, 16) % 4 == 0}
    said = answers(written)
    assert 0 < len(stated) < 40
    # Only those questions' traces state it.
    retell(written, POSTERIOR, lambda o, k: f"{said[o]} {PLAIN}" if o in stated else PLAIN)
    assert cells_of(written)["posterior"][:3:2] == [str(40 - len(stated)), "0.0%\n±0.0"]
    words = f"Left out of 40 training questions: {len(stated)} whose answer stands in the question"
    assert words in words_of(written)


def test_code_is_not_measured(tmp_path: Path) -> None:
    written = write_run(tmp_path / "run", edit=lambda problem: replace(problem, kind="code"))
    told = "Left out of 40 training questions: 40 whose answer cannot be looked for"
    assert told in words_of(written)
    assert list(cells_of(written)) == ["π₀ on held-out questions", "π₁ on held-out questions"]


def test_a_format_that_is_gone_is_named_on_the_page(tmp_path: Path) -> None:
    mine = shutil.copytree(SHIPPED / "toy", tmp_path / "my-format")
    written = write_run(tmp_path / "run", f"prompts.format={mine}")
    assert "π₁ on held-out questions" in cells_of(written)
    shutil.rmtree(mine)
    page = page_of(written)
    assert "cannot be cut into trace and answer here: prompts.format is" in page.text
    assert "posterior" in page.table("sampler", "answer stated early")


def test_a_run_that_has_not_sampled_says_so(tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path / "run", stop_at="problems-train"))
    assert "No traces are there yet whose answers could be looked for." in page.text


def asked(number: int, answer: str, kind: str = "math", **more: object) -> Asked:
    plain = Asked(f"{number:04}", f"question {number}?", answer, kind, {}, "source")
    return replace(plain, **more)  # type: ignore[arg-type]


def test_another_answer_is_of_the_kind_different_and_not_in_the_question() -> None:
    questions = [
        *(asked(i, str(1000 + i % 7), text=f"is {1000 + (i + 1) % 7} enough?") for i in range(60)),
        *(asked(100 + i, "RD"[: 1 + i % 2], kind="toy-grid") for i in range(9)),
    ]
    checked = pair_up(questions)
    assert (checked.drawn, checked.stated, checked.unmeasured, checked.alone) == (69, 0, 0, 0)
    of_kind = {
        kind: {q.answer for q in questions if q.kind == kind} for kind in ("math", "toy-grid")
    }
    for question, other in checked.pairs.values():
        assert other in of_kind[question.kind] - {question.answer}
        assert first_mention(question.text, other, question.kind, {}) is None


def test_answers_that_contain_each_other_are_not_paired() -> None:
    pairs = pair_up([asked(0, "(1, 2)"), asked(1, "2"), asked(2, "Paris")]).pairs
    assert pairs["0000"][1] == pairs["0001"][1] == "Paris"


def test_other_answers_are_preferably_of_the_same_source() -> None:
    questions = [asked(i, f"{i}00", source=f"task {i % 2}") for i in range(20)]
    source = {question.answer: question.source for question in questions}
    for question, other in pair_up(questions).pairs.values():
        assert source[other] == question.source
    pairs = pair_up([asked(0, "5", source="a"), asked(1, "6", source="b")]).pairs
    assert pairs["0000"][1] == "6", "of the kind where the source has no other"


def test_a_question_without_another_answer_is_counted() -> None:
    checked = pair_up([asked(0, "7"), asked(1, "7"), asked(2, "def f", kind="code")])
    assert (checked.pairs, checked.alone, checked.unmeasured) == ({}, 2, 1)


def test_another_choice_is_one_of_the_questions_own() -> None:
    choices = {"choices": ["1", "2", "3", "4"]}
    more = {"choices": ["1", "2", "3", "4", "5", "6"]}
    questions = [
        *(asked(i, "ABCD"[i % 4], "choice", parameters=choices) for i in range(8)),
        *(asked(10 + i, "56"[i % 2], "choice", parameters=more) for i in range(4)),
    ]
    checked = pair_up(questions)
    assert len(checked.pairs) == 12
    for question, other in checked.pairs.values():
        letters = "ABCDEF"[: len(question.parameters["choices"])]
        assert other in letters
        assert other != question.answer
        assert str(question.parameters["choices"]["ABCDEF".index(other)]) != question.answer


def test_large_sets_are_drawn_from_the_same_way_each_time() -> None:
    questions = [asked(i, str(10_000 + i)) for i in range(MOST_QUESTIONS + 500)]
    checked = pair_up(questions)
    assert checked.drawn == len(checked.pairs) == MOST_QUESTIONS
    assert pair_up(reversed(questions)) == checked
    assert max(map(int, checked.pairs)) > 1200, "not the first ones"


def test_of_a_question_the_first_traces_are_read(run: Written) -> None:
    tell = leaky(run, lambda number, k: not 0 <= k < MOST_TRACES, "test")
    retell(run, "iteration-1/evaluate", tell, "output_text")
    cells = cells_of(run)["π₁ on held-out questions"]
    assert cells[1:3] == [str(30 * MOST_TRACES), "0.0%\n±0.0"]
