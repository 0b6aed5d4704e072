"""A plan on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_vr.cluster.planner.hardware import GIB
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.report import Report, snippet
from megatron_vr.cluster.planner.search import Candidate

SHOWN = 10
SHOWN_FP8 = 5
HOUR = 3600


def print_plan(report: Report, console: Console | None = None) -> None:
    """Memory, speed, hours, disk and assumptions; other layouts where they were searched for."""
    out = console or Console()
    out.print(
        f"{report.model}: {report.parameters / 1e6:,.0f} million parameters, on "
        f"{report.device.name} ({report.device.memory_gib:g} GiB)",
        highlight=False,
    )
    if report.fits:
        out.print(_memory(report))
        _print_lines(_verdicts(report), out)
        out.print(_speed(report))
        out.print(_hours(report))
        _print_lines(_bases(report), out)
    _print_rest(report, out)
    if report.layouts is not None:
        _print_layouts(report.layouts, out)
    for fault in report.faults:
        out.print(f"NOT AS IT IS: {fault}", highlight=False, soft_wrap=True, style="bold")


def _memory(report: Report) -> Table:
    table = _table("memory of a GPU, GiB", "stage")
    for name in ("weights", "grads", "optim", "activ", "head", "buffers", "all"):
        table.add_column(name, justify="right")
    for fit in report.fits:
        memory = fit.memory
        parts = [memory.weights, memory.gradients, memory.optimizer]
        parts += [memory.activations, memory.head, memory.buffers, memory.total]
        table.add_row(fit.name, *(f"{part / GIB:.1f}" for part in parts))
    return table


def _verdicts(report: Report) -> Iterator[str]:
    for fit in report.fits:
        largest = "" if fit.largest is None else f", up to {fit.largest:,} fit"
        tokens = f"micro_batch_tokens {fit.case.micro_batch_tokens:,}{largest}"
        yield f"{fit.name}: {fit.verdict}; {tokens}"
    host = max((fit.host.needed for fit in report.fits if fit.host is not None), default=0)
    yield f"a node's own memory, while a checkpoint is saved: {host / GIB:,.0f} GiB"
    open_ones = [fit.name for fit in report.fits if fit.host is not None and fit.host.is_open]
    if open_ones:
        yield (
            f"{', '.join(open_ones)}: no `memory` is asked for, so jobs get what Slurm or the site "
            "usually gives; if that is less, set cluster.train.memory (0: all of the node's)"
        )


def _speed(report: Report) -> Table:
    table = _table("speed", "stage")
    for name in ("step s", "tokens/s/GPU", "TFLOP/s/GPU", "MFU", "bubble", "GPUs"):
        table.add_column(name, justify="right")
    seen = set()
    for one in report.estimates:
        if one.step is None or one.stage in seen:
            continue
        seen.add(one.stage)
        step = one.step
        shown = "all" if one.stage == "score" else f"{step.seconds:,.3g}"
        table.add_row(
            *(one.stage, shown, f"{step.tokens_per_gpu:,.0f}", f"{step.tflops:,.0f}"),
            *(f"{step.mfu:.0%}", f"{step.bubble / step.seconds:.0%}", str(step.gpus)),
        )
    return table


def _hours(report: Report) -> Table:
    table = _table("hours", "job")
    for name in ("hours", "nodes", "GPU-h", "limit", "again"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in report.estimates:
        restarts = "–" if one.restarts is None else str(one.restarts)
        shape = f"{one.shape.nodes} × {one.shape.gpus}"
        hours = f"{one.seconds / HOUR:,.2f}"
        table.add_row(one.name, hours, shape, f"{one.gpu_hours:,.1f}", one.shape.time, restarts)
    table.add_section()
    table.add_row("to do", f"{report.hours:,.2f}", "", f"{report.gpu_hours:,.1f}", "", "")
    return table


def _bases(report: Report) -> Iterator[str]:
    """What the hours rest on, once for jobs that rest on the same."""
    jobs: dict[str, list[str]] = {}
    for one in report.estimates:
        jobs.setdefault(one.basis, []).append(one.name)
    for basis, names in jobs.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {basis}"


def _print_rest(report: Report, out: Console) -> None:
    disk = report.disk
    lines = [
        f"disk: {disk.total:,.0f} GB (tables {disk.tables:,.0f}, checkpoints "
        f"{disk.checkpoints:,.0f}, exported models {disk.exports:,.0f})",
        f"questions: {report.counts.train:,} to learn from, {report.counts.references:,} of them "
        f"with a reference; {report.counts.test:,} held out",
        f"assumed (--assume key=value): {', '.join(_assumed(report.assumed))}",
    ]
    lines += [f"measured in this run: {note}" for note in report.notes]
    _print_lines(lines, out)


def _assumed(assumed: PlanAssumptions) -> Iterator[str]:
    for key, value in assumed.model_dump().items():
        yield f"{key}={'null' if value is None else f'{value:g}'}"


def _print_lines(lines: Iterable[str], out: Console) -> None:
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
    out.print()


def _print_layouts(layouts: Sequence[Candidate], out: Console) -> None:
    if not layouts:
        out.print(
            "no layout of `train` fits on these GPUs: use more nodes (--nodes), a device with more "
            "memory, or a smaller train.micro_batch_tokens",
            soft_wrap=True,
        )
        return
    best = []
    for told, shown, in_fp8 in (("without FP8", SHOWN, False), ("with FP8", SHOWN_FP8, True)):
        those = [one for one in layouts if (one.case.fp8 is not None) is in_fp8]
        if those:
            out.print(_layouts(those[:shown], f"{told}, the fastest of {len(those):,}"))
            best.append((told, those[0]))
    for told, one in best:
        out.print(f"# the fastest {told}", highlight=False)
        out.print(snippet(one) + "\n", highlight=False, soft_wrap=True)


def _layouts(layouts: Sequence[Candidate], told: str) -> Table:
    table = _table(f"layouts of `train` that fit {told}", "TP")
    for name in ("PP", "VPP", "CP", "DP", "recompute", "GiB", "step s", "tokens/s/GPU"):
        table.add_column(name, justify="right")
    for one in layouts:
        layout = one.case.layout
        splits = (layout.tensor, layout.pipeline, layout.virtual_pipeline or "–", layout.context)
        table.add_row(
            *(str(split) for split in splits),
            *(str(one.case.data), one.case.recompute, f"{one.memory.total / GIB:.1f}"),
            *(f"{one.step.seconds:,.3g}", f"{one.step.tokens_per_gpu:,.0f}"),
        )
    return table


def _table(title: str, first: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", caption_justify="left")
    table.add_column(first, no_wrap=True)
    return table
