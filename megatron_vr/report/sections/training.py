"""Curves of every training: π_0, the posteriors, and the θ-step of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_vr.report.blocks import Block, Folded, Missing, Picture, Words
from megatron_vr.report.plots.lines import Line, LinePanel, line_panels
from megatron_vr.report.plots.style import START, row_colours
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.wording import listed, picture_name

LOSS = "weighted loss (nats per token)"
OTHERS = {
    "grad_norm": ("Gradient norm", "before clipping"),
    "effective_sample_size": ("Effective sample size", "examples per batch"),
    "tokens_per_second": ("Speed", "tokens per second"),
    "learning_rate": ("Learning rate", "learning rate"),
}
KINDS = {"sft": "π₀", "posterior": "posterior q", "train": "θ-step"}


@dataclass(frozen=True)
class Curve:
    """One training and the lines of its metrics."""

    stage: Stage
    colour: str
    rows: Sequence[Mapping[str, float]]

    def line(self, metric: str, name: str, dashed: bool = False) -> Line:
        """One metric over steps."""
        known = [row for row in self.rows if metric in row]
        steps, values = [row["step"] for row in known], [row[metric] for row in known]
        return Line(name, self.colour, steps, values, dashed=dashed)


def training_blocks(run: RunFolder, t: int) -> list[Block]:
    """The losses of iteration t in sight, the other metrics folded away."""
    kinds = {
        "sft": _curves(run, "sft", 0) if t == 1 else [],
        "posterior": _curves(run, "posterior", t),
        "train": _curves(run, "train", t),
    }
    drawn = {kind: curves for kind, curves in kinds.items() if curves}
    if not drawn:
        return [Missing("No training has written metrics yet.")]
    blocks: list[Block] = [
        _losses(run, drawn, t),
        Folded("Gradient norm, sample size, speed, learning rate", [_others(run, drawn, t)]),
    ]
    if "train" not in drawn:
        blocks.append(Missing("The θ-step has not begun."))
    if t > 1 and "posterior" not in drawn and run.own("sample-posterior", t):
        told = "No posterior is trained anew: its settings and data are the last iteration's."
        blocks.append(Words(told, "quiet"))
    return blocks


def _curves(run: RunFolder, label: str, iteration: int) -> list[Curve]:
    """Trainings that have metrics, done or under way; each row's own."""
    colours = row_colours(run.rows)
    found = [
        Curve(stage, START if label == "sft" else colours[arm], stage.metrics())
        for arm in run.arms
        for stage in run.stages.values()
        if (stage.label, stage.iteration, stage.arm) == (label, iteration, arm)
    ]
    return [curve for curve in found if curve.rows]


def _losses(run: RunFolder, drawn: Mapping[str, Sequence[Curve]], t: int) -> Picture:
    """A panel for each kind of training, for their losses do not compare."""
    panels: list[LinePanel] = []
    for kind, curves in drawn.items():
        lines = [
            curve.line("loss", KINDS["sft"] if kind == "sft" else curve.stage.arm)
            for curve in curves
        ]
        title = KINDS[kind]
        if len(lines) == 1 and len(lines[0].y) > 1:
            title += f": loss {lines[0].y[0]:.2f} → {lines[0].y[-1]:.2f}"
        panels.append(LinePanel(title, lines, "step", LOSS if not panels else ""))
    name = picture_name("loss", t, len(run.iterations))
    return Picture(name, line_panels(panels), f"Loss over the steps of {listed(_titles(drawn))}")


def _others(run: RunFolder, drawn: Mapping[str, Sequence[Curve]], t: int) -> Picture:
    """A panel for each other metric, all trainings in it."""
    panels = []
    for metric, (title, unit) in OTHERS.items():
        lines = [
            curve.line(metric, _name(kind, curve.stage.arm), dashed=kind == "posterior")
            for kind, curves in drawn.items()
            for curve in curves
        ]
        panels.append(LinePanel(title, lines, "step", unit))
    name = picture_name("training", t, len(run.iterations))
    alt = f"Gradient norm, sample size, speed and learning rate of {listed(_titles(drawn))}"
    return Picture(name, line_panels(panels), alt)


def _name(kind: str, arm: str) -> str:
    return {"sft": KINDS["sft"], "posterior": f"{arm}'s q"}.get(kind, arm)


def _titles(drawn: Mapping[str, Sequence[Curve]]) -> list[str]:
    return [KINDS[kind] for kind in drawn]
