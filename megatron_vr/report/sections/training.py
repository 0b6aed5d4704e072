"""Curves of every training: π_0, the posteriors, and the θ-step of each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_vr.report.blocks import Block, Folded, Missing, Picture, Words
from megatron_vr.report.plots.lines import LinePanel, line_panels
from megatron_vr.report.run_folder import RunFolder
from megatron_vr.report.sections.fp8 import fp8_blocks
from megatron_vr.report.sections.speed import speed_blocks
from megatron_vr.report.trainings import KINDS, Training, metric_line, read_trainings
from megatron_vr.report.wording import listed, picture_name

LOSS = "weighted loss (nats per token)"
OTHERS = {
    "grad_norm": ("Gradient norm", "before clipping"),
    "effective_sample_size": ("Effective sample size", "examples per batch"),
    "tokens_per_second": ("Speed", "tokens per second"),
    "learning_rate": ("Learning rate", "learning rate"),
}
Drawn = Mapping[str, Sequence[Training]]  # by the label of the stages


def training_blocks(run: RunFolder, t: int) -> list[Block]:
    """The losses and the speed of iteration t in sight, the other metrics folded away."""
    kinds = {
        "sft": read_trainings(run, "sft", 0) if t == 1 else [],
        "posterior": read_trainings(run, "posterior", t),
        "train": read_trainings(run, "train", t),
    }
    drawn = {kind: found for kind, found in kinds.items() if found}
    if not drawn:
        return [Missing("No training has written metrics yet.")]
    trainings = [training for found in drawn.values() for training in found]
    blocks: list[Block] = [
        _losses(run, drawn, t),
        Folded("Gradient norm, sample size, speed, learning rate", [_others(run, drawn, t)]),
        *speed_blocks(run, t, trainings),
        *fp8_blocks(run, t, trainings),
    ]
    if "train" not in drawn:
        blocks.append(Missing("The θ-step has not begun."))
    if t > 1 and "posterior" not in drawn and run.own("sample-posterior", t):
        told = "No posterior is trained anew: its settings and data are the last iteration's."
        blocks.append(Words(told, "quiet"))
    return blocks


def _losses(run: RunFolder, drawn: Drawn, t: int) -> Picture:
    """A panel for each kind of training, for their losses do not compare."""
    panels: list[LinePanel] = []
    for kind, trainings in drawn.items():
        lines = [
            metric_line(
                run, training, "loss", KINDS["sft"] if kind == "sft" else training.stage.arm
            )
            for training in trainings
        ]
        title = KINDS[kind]
        if len(lines) == 1 and len(lines[0].y) > 1:
            title += f": loss {lines[0].y[0]:.2f} → {lines[0].y[-1]:.2f}"
        panels.append(LinePanel(title, lines, "step", LOSS if not panels else ""))
    name = picture_name("loss", t, len(run.iterations))
    return Picture(name, line_panels(panels), f"Loss over the steps of {listed(_titles(drawn))}")


def _others(run: RunFolder, drawn: Drawn, t: int) -> Picture:
    """A panel for each other metric, all trainings in it."""
    panels = []
    for metric, (title, unit) in OTHERS.items():
        lines = [
            metric_line(run, training, metric, training.name, dashed=kind == "posterior")
            for kind, trainings in drawn.items()
            for training in trainings
        ]
        panels.append(LinePanel(title, lines, "step", unit))
    name = picture_name("training", t, len(run.iterations))
    alt = f"Gradient norm, sample size, speed and learning rate of {listed(_titles(drawn))}"
    return Picture(name, line_panels(panels), alt)


def _titles(drawn: Drawn) -> list[str]:
    return [KINDS[kind] for kind in drawn]
