"""What FP8 made of the trainings' tensors; nothing where no training was in FP8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_vr.report.blocks import Block, Folded, Picture, Words
from megatron_vr.report.plots.lines import Line, LinePanel, line_panels
from megatron_vr.report.run_folder import RunFolder
from megatron_vr.report.trainings import Training, metric_line
from megatron_vr.report.wording import listed, picture_name

TITLE = "FP8: largest values and the format's range"
# The metric → its panel's title and unit.
PANELS = {
    "fp8_input_amax": ("Largest input", "of attention's and the MLP's output products"),
    "fp8_weight_amax": ("Largest weight", "absolute value"),
    "fp8_gradient_amax": ("Largest gradient", "of a product's output"),
    "fp8_range_most": ("Range used", "most, share of the format's"),
    "fp8_range_least": ("Range used", "least, share of the format's"),
}
ABOUT = (
    "Largest absolute values that the layers' matrix products took, over all ranks and "
    "micro-batches of a step. An input that keeps growing is what FP8 trainings fail of."
)
DELAYED = (
    "With delayed scaling a scale follows from the steps before: above 1, values were cut off; far "
    "below 1, small ones are rounded to zero."
)


def fp8_blocks(run: RunFolder, t: int, trainings: Sequence[Training]) -> list[Block]:
    """Curves folded away, and in sight what was broken."""
    panels = fp8_panels(run, trainings)
    if not panels:
        return []
    titles = listed(list(dict.fromkeys(panel.title.lower() for panel in panels)))
    name = picture_name("fp8", t, len(run.iterations))
    picture = Picture(name, line_panels(panels), f"Over the steps in FP8: {titles}")
    has_range = any(training.values("fp8_range_most") for training in trainings)
    about = Words(f"{ABOUT} {DELAYED}" if has_range else ABOUT, "quiet")
    return [Folded(TITLE, [picture, about]), *_warnings(trainings)]


def fp8_panels(run: RunFolder, trainings: Sequence[Training]) -> list[LinePanel]:
    """One for each metric that some training knows."""
    return [
        LinePanel(title, lines, "step", unit)
        for metric, (title, unit) in PANELS.items()
        if (lines := _lines(run, metric, trainings))
    ]


def _lines(run: RunFolder, metric: str, trainings: Sequence[Training]) -> list[Line]:
    """Of the trainings that know it."""
    return [
        metric_line(run, training, metric, training.name, training.stage.label == "posterior")
        for training in trainings
        if training.values(metric)
    ]


def _warnings(trainings: Sequence[Training]) -> Iterator[Words]:
    """Trainings with tensors that were not finite, or all zero."""
    for training in trainings:
        broken = [
            (step, count)
            for step, count in zip(*training.curve("fp8_broken"), strict=True)
            if count > 0
        ]
        if broken:
            step, count = broken[0]
            yield Words(
                f"{training.name}: {count:,.0f} tensors had a scale or values that are not finite, "
                f"or were all zero, in step {step:,.0f}; so had some in {len(broken):,} of the "
                "logged steps.",
                "warning",
            )
