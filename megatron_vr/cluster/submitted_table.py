"""What `submit` did, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.submit import Submitted

WIDE = 120  # columns of a terminal that has room for the parents


def as_rows(lines: Sequence[Submitted], run: Path) -> list[dict[str, Any]]:
    """One JSON object for each job."""
    files = RunFiles.of(run)
    return [
        {
            "job": line.job.name,
            "stage": line.job.stage,
            "state": line.state,
            "id": line.id,
            "after": list(line.after),
            "nodes": line.job.shape.nodes,
            "gpus": line.job.shape.gpus,
            "processes": line.job.shape.processes,
            "time": line.job.shape.time,
            "script": str(files.script(line.job)),
            "slurm": line.said,
        }
        for line in lines
    ]


def print_submitted(
    lines: Sequence[Submitted], run: Path, dry_run: bool, console: Console | None = None
) -> None:
    """A line for each job, then where things are and what to do next."""
    console = console or Console()
    table = Table(box=SIMPLE_HEAD)
    names = ("stage", "state", "job", "nodes", "GPUs", "limit")
    for name in names:
        right = name in ("job", "nodes", "GPUs", "limit")
        table.add_column(name, no_wrap=True, justify="right" if right else "left")
    wide = console.width >= WIDE
    if wide:
        table.add_column("after")
    for line in lines:
        shape, number = line.job.shape, "" if line.id is None else str(line.id)
        gpus = f"{shape.nodes} × {shape.gpus}" if shape.gpus else ""
        cells = (line.job.name, line.state, number, str(shape.nodes), gpus, shape.time)
        table.add_row(*cells, *([", ".join(line.after)] if wide else []))
    console.print(table)
    files = RunFiles.of(run)
    told = {line.said for line in lines if line.said}
    for words in sorted(told) if dry_run else ():
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(f"scripts: {files.folder / 'scripts'}", markup=False, soft_wrap=True)
    if dry_run:
        console.print("nothing was submitted (--dry-run)")
    else:
        console.print(f"watch:   megatron-vr status {run}", markup=False, soft_wrap=True)
