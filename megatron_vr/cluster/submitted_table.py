"""What `submit` did, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_vr.cluster.job import RunFiles, Shape
from megatron_vr.cluster.submit import Submitted


def as_rows(lines: Sequence[Submitted], run: Path) -> list[dict[str, Any]]:
    """One JSON object for each job."""
    files = RunFiles(run.absolute())
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
    for name in ("stage", "state", "job", "shape", "time"):
        table.add_column(name, no_wrap=True)
    table.add_column("after")
    for line in lines:
        table.add_row(
            line.job.name,
            line.state,
            "" if line.id is None else str(line.id),
            _shape(line.job.shape),
            line.job.shape.time,
            ", ".join(line.after),
        )
    console.print(table)
    files = RunFiles(run.absolute())
    told = {line.said for line in lines if line.said}
    for words in sorted(told) if dry_run else ():
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    console.print(f"scripts: {files.folder / 'scripts'}", markup=False, soft_wrap=True)
    if dry_run:
        console.print("nothing was submitted (--dry-run)")
    else:
        console.print(f"watch:   megatron-vr status {run}", markup=False, soft_wrap=True)


def _shape(shape: Shape) -> str:
    """As in `2 nodes × 8 GPUs`."""
    nodes = "1 node" if shape.nodes == 1 else f"{shape.nodes} nodes"
    return f"{nodes} × {shape.gpus} GPUs" if shape.gpus else nodes
