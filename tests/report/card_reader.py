"""Facts for a model card, and the card read back: front matter, tables, blocks of code, text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.problems.codec import Piece
from megatron_vr.report.model_card import (
    Base,
    CardFacts,
    QuestionSet,
    ResultRow,
    ResultTable,
)
from megatron_vr.report.results import Score
from tests.report.synthetic import SETTINGS


def settings(*overrides: str) -> Settings:
    return load_settings(SETTINGS, ["run.folder=/home/ada/runs/mine", *overrides])


def table(scope: str, rows: tuple[str, ...], mine: str) -> ResultTable:
    scores = (Score(0.5, 0.012, 30), Score(0.731, 0.1, 30), None)
    made = tuple(ResultRow(name, f"how {name} learns", scores, name == mine) for name in rows)
    return ResultTable(scope, 30, ("greedy answer", "mean of samples", "pass@8"), made)


def facts(**changes: Any) -> CardFacts:
    known = CardFacts(
        repo="org/name",
        arm="variational",
        about="posterior traces",
        iteration=1,
        settings=settings(),
        base=Base("hub", "Qwen/Qwen3-4B", {"license": "apache-2.0"}),
        data=(QuestionSet("train", ("toy:train",), 40, 12), QuestionSet("validation", ())),
        prompt=(Piece("<bos> ", False), Piece("question", True), Piece(" <think>\n", False)),
        end="<eos>",
        tables=(table("all", ("start", "rft", "variational"), "variational"),),
        not_evaluated=(),
        versions={"torch": "2.13.0"},
    )
    return replace(known, **changes)


def metadata(card: str) -> dict[str, Any]:
    return dict(ModelCard(card).data.to_dict())


def tokens(card: str) -> list[Token]:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(ModelCard(card).text)


def tables(card: str) -> list[list[list[str]]]:
    """Tables of rows of cells' texts."""
    found: list[list[list[str]]] = []
    inside = False
    for token in tokens(card):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            inside = True
        elif token.type == "inline" and inside:
            found[-1][-1].append(shown(token))
            inside = False
    return found


def shown(token: Token) -> str:
    """What a reader sees of an inline token; strong text between asterisks."""
    marks = {"strong_open": "*", "strong_close": "*", "softbreak": " "}
    return "".join(marks.get(c.type, c.content) for c in token.children or ())


def text(card: str) -> str:
    """All running text."""
    return "\n".join(shown(token) for token in tokens(card) if token.type == "inline")


def blocks(card: str) -> dict[str, str]:
    """Language → content of the fenced blocks."""
    return {token.info: token.content for token in tokens(card) if token.type == "fence"}


def headings(card: str) -> list[str]:
    found = tokens(card)
    return [shown(found[i + 1]) for i, t in enumerate(found) if t.type == "heading_open"]
