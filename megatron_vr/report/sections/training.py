"""Curves of every training: π_0, the posteriors, and the θ-step of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from megatron_vr.report.blocks import Block, Folded, Missing, Picture, Section, Words
from megatron_vr.report.plots.lines import Line, LinePanel, line_panels
from megatron_vr.report.plots.style import row_colours
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.wording import listed, picture_name
from megatron_vr.training.metrics import StepMetrics

AXES = {
    "loss": "weighted loss (nats per expected target token)",
    "grad_norm": "gradient norm (before clipping)",
    "learning_rate": "learning rate",
    "tokens_per_second": "tokens per second",
    "effective_sample_size": "effective sample size (examples per batch)",
    "seconds": "seconds per step",
}
KINDS = {"sft": "π₀", "posterior": "posterior q", "train": "θ-step"}


@dataclass(frozen=True)
class Curve:
    """One training and the lines of its metrics."""

    stage: Stage
    rows: Sequence[Mapping[str, float]]

    def line(self, name: str, colour: str, metric: str) -> Line:
        """One metric over steps."""
        known = [row for row in self.rows if metric in row]
        return Line(name, colour, [r["step"] for r in known], [r[metric] for r in known])


def training_section(run: RunFolder) -> Section:
    """The loss in sight, the other metrics folded away."""
    blocks: list[Block] = []
    first = _curves(run, "sft", 0)
    several = len(run.iterations) > 1
    for t in run.iterations:
        kinds = {
            "sft": first if t == 1 else [],
            "posterior": _curves(run, "posterior", t),
            "train": _curves(run, "train", t),
        }
        drawn = {kind: curves for kind, curves in kinds.items() if curves}
        if several:
            blocks.append(Words(f"Iteration {t}", "quiet"))
        if not drawn:
            blocks.append(Missing("No training has written metrics yet."))
            continue
        pictures = {
            metric: _picture(run, drawn, metric, t) for metric in _metrics(drawn) if metric in AXES
        }
        if "loss" in pictures:
            blocks.append(pictures.pop("loss"))
        blocks.append(Folded(listed([name.replace("_", " ") for name in pictures]), list(pictures.values())))
        waiting = [KINDS[kind] for kind in kinds if kind not in drawn and (kind != "sft" or t == 1)]
        if waiting:
            blocks.append(Missing(f"Not trained yet: {listed(waiting)}."))
    return Section("training", "Training", blocks)


def _curves(run: RunFolder, label: str, iteration: int) -> list[Curve]:
    """Trainings that have metrics, done or under way; each row's own."""
    found = [
        Curve(stage, stage.metrics())
        for arm in run.arms
        for stage in run.stages.values()
        if (stage.label, stage.iteration, stage.arm) == (label, iteration, arm)
    ]
    return [curve for curve in found if curve.rows]


def _metrics(drawn: Mapping[str, Sequence[Curve]]) -> list[str]:
    """The metrics that any of the trainings wrote, in the order of StepMetrics."""
    there = {name for curves in drawn.values() for curve in curves for name in curve.rows[-1]}
    return [field.name for field in fields(StepMetrics) if field.name in there - {"step"}]


def _picture(
    run: RunFolder, drawn: Mapping[str, Sequence[Curve]], metric: str, t: int
) -> Picture:
    colours = row_colours(run.rows)
    panels = []
    for kind, curves in drawn.items():
        lines = [
            curve.line(curve.stage.arm, colours[curve.stage.arm], metric) for curve in curves
        ]
        panels.append(LinePanel(_title(kind, metric, lines), lines, "step", AXES[metric]))
    png = line_panels(panels)
    name = picture_name(metric.replace("_", "-"), t, len(run.iterations))
    return Picture(name, png, f"{AXES[metric]} over the steps of {listed([KINDS[k] for k in drawn])}")


def _title(kind: str, metric: str, lines: Sequence[Line]) -> str:
    """For a loss of one line, from where to where it went; else what the panel holds."""
    if metric == "loss" and len(lines) == 1 and len(lines[0].y) > 1:
        return f"{KINDS[kind]}: loss {lines[0].y[0]:.2f} → {lines[0].y[-1]:.2f}"
    return KINDS[kind]

