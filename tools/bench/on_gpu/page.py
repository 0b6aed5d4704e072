"""The table of docs/gpu-results.md: which goals are in each of its lines. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tools.bench.on_gpu.goals import FP8, LARGEST_GAP, Goal

_MET: Final = {True: " (met)", False: " (not met)", None: ""}


@dataclass(frozen=True)
class Line:
    """What is told in one line: the goals of these names, each after its label if it has one."""

    what: str
    goal: str
    names: Mapping[str, str]


def _recipes(form: str) -> dict[str, str]:
    return {recipe: form.format(recipe) for recipe in FP8}


def _shapes() -> Iterator[Line]:
    whole = "8192, all layers"
    for name, called, least in (("8b", "8B", "≥ 0.5"), ("4b", "4B", "")):
        names = {
            "": f"{name} bf16, 8192: share of the bf16 rate",
            "computed for all layers": f"{name} bf16, {whole}: share of the bf16 rate",
        }
        yield Line(f"bf16 step of Qwen3-{called}'s shape over that rate", least, names)
    for name, called, least in (("8b", "8B", "≥ 1.3"), ("4b", "4B", "")):
        for told in ("measured", "computed for all layers"):
            what = f"FP8 over bf16 tokens/s, {called}'s shape, {told}"
            goal = least if told == "measured" else ""
            yield Line(what, goal, _recipes(name + " {}: tokens/s over bf16, " + told))


def _heads() -> Iterator[Line]:
    for what, called in (("time", "time"), ("memory", "peak memory")):
        names = {width: f"head's {what} over Liger's, width {width}" for width in ("4096", "2560")}
        yield Line(f"log-prob head over Liger's, {called} at 32,768 × 151,936", "≤ 1", names)


def _rivals() -> Iterator[Line]:
    title = "tokens/s over Transformers + Liger"
    for batch, called, kinds in (
        ("8192", "sequences of 8192", ("flash", "cuDNN")),
        ("traces", "traces in packs", ("packed",)),
    ):
        for optimizer, least in (("float32 main weights", "≥ 1.5"), ("bfloat16 AdamW", "")):
            names = {kind: f"{title}, {batch}, {kind}, {optimizer}" for kind in kinds}
            what = f"whole step over Hugging Face + Liger, {called}, their {optimizer}"
            yield Line(what, least, names)
    padded = f"{title}, traces, flash over padding, bfloat16 AdamW"
    yield Line("the same of traces, padded, their bfloat16 AdamW", "", {"flash": padded})


LINES: Final = (
    Line("bf16 matrix rate of the card, TFLOP/s", "", {"": "bf16 product, square: TFLOP/s"}),
    Line("FP8 matrix rate of the card, TFLOP/s", "", {"": "FP8 product, square: TFLOP/s"}),
    *_shapes(),
    Line(
        "gap of FP8's loss to bf16's, 300 steps, 100M parameters",
        f"< {LARGEST_GAP}",
        _recipes("{}: gap of the loss to bf16's"),
    ),
    Line(
        "the same of bf16 in other packs",
        "",
        {"": "bf16 in other packs: gap of the loss to bf16's"},
    ),
    *_heads(),
    *_rivals(),
    Line(
        "`convert to-megatron` of 4B's shape, GB/s",
        "",
        {"": "4b shape, convert to-megatron: GB/s"},
    ),
    Line(
        "the same, loaded into TE layers: largest difference of log-probs from float32's, nats",
        "",
        {"": "4b shape: largest difference of log-probs from float32's, nats"},
    ),
    Line(
        "FP8 release in vLLM: seconds until it wrote tokens",
        "",
        {"": "FP8 release, seconds until vLLM wrote tokens"},
    ),
)


def table(goals: Sequence[Goal], provenance: str) -> str:
    """The page's table in Markdown; a line of which nothing was measured has blanks."""
    named = {goal.name: goal for goal in goals}
    lines = ["| what | goal | measured | date, device, versions, command |", "|---|---|---|---|"]
    for line in LINES:
        told = [
            f"{label} {_told(named[name])}".strip()
            for label, name in line.names.items()
            if name in named
        ]
        cells = (line.what, line.goal, "; ".join(told), provenance if told else "")
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def _told(goal: Goal) -> str:
    detail = f" [{goal.detail}]" if goal.detail else ""
    return f"{goal.value:.3g}{_MET[goal.met]}{detail}"
