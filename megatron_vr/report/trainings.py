"""The trainings of a run and what they wrote of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_vr.report.plots.lines import Line
from megatron_vr.report.plots.style import START, row_colours
from megatron_vr.report.run_folder import RunFolder, Stage

KINDS = {"sft": "π₀", "posterior": "posterior q", "train": "θ-step"}


@dataclass(frozen=True)
class Training:
    """One training, done or under way, and the lines of its metrics."""

    stage: Stage
    rows: Sequence[Mapping[str, float | None]]

    @property
    def name(self) -> str:
        """π₀, `variational`'s q, or the row that the θ-step belongs to."""
        named = {"sft": KINDS["sft"], "posterior": f"{self.stage.arm}'s q"}
        return named.get(self.stage.label, self.stage.arm)

    def curve(self, metric: str) -> tuple[list[float], list[float]]:
        """Steps and values of one metric, where it is known; older runs lack some."""
        known = [(row["step"], row.get(metric)) for row in self.rows]
        points = [(x, y) for x, y in known if x is not None and y is not None]
        return [x for x, _ in points], [y for _, y in points]

    def values(self, metric: str) -> list[float]:
        """One metric where it is known, in the order of steps."""
        return self.curve(metric)[1]


def read_trainings(run: RunFolder, label: str, iteration: int) -> list[Training]:
    """Trainings of this label that have metrics, each row's own; `variational`'s first."""
    found = [
        Training(stage, stage.metrics())
        for arm in run.arms
        for stage in run.stages.values()
        if (stage.label, stage.iteration, stage.arm) == (label, iteration, arm)
    ]
    return [training for training in found if training.rows]


def metric_line(
    run: RunFolder, training: Training, metric: str, name: str, dashed: bool = False
) -> Line:
    """One metric over the steps of a training, in its row's colour."""
    start = training.stage.label == "sft"
    colour = START if start else row_colours(run.rows)[training.stage.arm]
    return Line(name, colour, *training.curve(metric), dashed=dashed)
