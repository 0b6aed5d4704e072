"""How fast the trainings are, where their time goes, and what they leave unused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median

from megatron_vr.report.blocks import Block, Cell, Folded, Line, Picture, Table, Words
from megatron_vr.report.plots.shares import Part, stacked_shares
from megatron_vr.report.plots.style import START, row_colours
from megatron_vr.report.run_folder import RunFolder
from megatron_vr.report.trainings import KINDS, Training
from megatron_vr.report.wording import percent, picture_name

UNKNOWN = "–"
# The metric's name → its part's name and colour.
PHASES = {
    "data_seconds": ("data", "#E69F00"),
    "forward_backward_seconds": ("forward and backward", "#56B4E9"),
    "optimizer_seconds": ("optimizer", "#009E73"),
    "checkpoint_seconds": ("checkpoint", "#CC79A7"),
}
LOOKS = (*PHASES.values(), ("the rest", START))
CAPTION = (
    "Medians over the steps; of memory the largest, of skipped updates all. TFLOP/s are those of "
    "the model's matrix products: attention counts its causal half, recomputation nothing. MFU is "
    "their share of the device's dense peak. Useful tokens are the real ones among all computed. "
    "The straggler is how much longer the slowest rank computes than the ranks' mean."
)
CHARGED = (
    "A phase is charged with the time that the process spends in it; on a GPU, work begun in one "
    "may end in a later one."
)


def speed_blocks(run: RunFolder, t: int, trainings: Sequence[Training]) -> list[Block]:
    """The numbers of each training in sight, the split of its time folded away."""
    blocks: list[Block] = [_table(run, trainings)]
    splits = {training.name: mean_split(training) for training in trainings}
    timed = {name: split for name, split in splits.items() if split is not None}
    if timed:
        picture = _picture(run, t, timed)
        blocks.append(Folded("Where the time of a step goes", [picture, Words(CHARGED, "quiet")]))
    return blocks


def mean_split(training: Training) -> list[float] | None:
    """Mean seconds a step in each of PHASES, and last in nothing that is named.

    Means, for they add up. None where a phase was never timed, or no time passed.
    """
    known = [training.values(metric) for metric in PHASES]
    steps = training.values("seconds")
    if not steps or not all(known):
        return None
    parts = [fmean(values) for values in known]
    # A checkpoint is written between two steps: it is no part of either's seconds.
    *inside, _ = parts
    parts.append(max(0.0, fmean(steps) - sum(inside)))
    return parts if sum(inside) > 0 else None


def _table(run: RunFolder, trainings: Sequence[Training]) -> Table:
    colours = row_colours(run.rows)
    columns: list[tuple[str, str, Callable[[list[float]], str]]] = [
        ("tokens per second", "tokens_per_second", lambda found: rounded(median(found))),
        ("TFLOP/s per device", "tflops", lambda found: rounded(median(found))),
        ("MFU", "mfu", lambda found: percent(median(found))),
        ("useful tokens", "useful", lambda found: percent(median(found))),
        ("peak memory (GiB)", "peak_memory_gib", lambda found: f"{max(found):.1f}"),
        ("straggler", "straggler", lambda found: f"+{percent(median(found))}"),
        ("skipped updates", "skipped", lambda found: f"{max(found):,.0f}"),
    ]
    lines = []
    for training in trainings:
        cells = []
        for _, metric, tell in columns:
            found = training.values(metric)
            cells.append(Cell(tell(found) if found else UNKNOWN))
        label = training.stage.label
        colour = START if label == "sft" else colours[training.stage.arm]
        about = KINDS[label] if label == "train" else ""
        lines.append(Line(training.name, cells, colour, about))
    return Table([("", [title for title, _, _ in columns])], lines, CAPTION, "training")


def rounded(value: float) -> str:
    """Two digits that count, or all before the point: 0.0123 → `0.012`, 41.6 → `42`, `12,345`."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _picture(run: RunFolder, t: int, timed: Mapping[str, Sequence[float]]) -> Picture:
    parts = [
        Part(name, colour, [split[number] for split in timed.values()])
        for number, (name, colour) in enumerate(LOOKS)
    ]
    totals = [_seconds(sum(split)) for split in timed.values()]
    png = stacked_shares("Mean time of a step", list(timed), parts, totals)
    told = "; ".join(f"{name}: {_in_words(split)}" for name, split in timed.items())
    return Picture(picture_name("time", t, len(run.iterations)), png, f"Mean step time. {told}")


def _in_words(split: Sequence[float]) -> str:
    named = zip(LOOKS, split, strict=True)
    return ", ".join(f"{name} {_seconds(seconds)}" for (name, _), seconds in named)


def _seconds(value: float) -> str:
    return f"{rounded(value)} s"
