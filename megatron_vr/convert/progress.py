"""What a person sees while tensors move: bytes, and bytes a second, on standard error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from megatron_vr.convert.units import Advance

LINE_EVERY_SECONDS = 20.0


@contextmanager
def transfer_bar(label: str, total: int, done: int = 0) -> Iterator[Advance]:
    """A bar of `total` bytes, `done` of them before; yields the function that advances it.

    Where standard error is no terminal, a line is printed every 20 seconds instead.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        yield _lines(console, label, total, done)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda amount: progress.update(task, advance=amount)


def _lines(console: Console, label: str, total: int, done: int) -> Advance:
    began = printed = time.monotonic()
    moved = 0

    def advance(amount: int) -> None:
        nonlocal moved, printed
        moved += amount
        now = time.monotonic()
        if now - printed >= LINE_EVERY_SECONDS:
            printed = now
            rate = moved / (now - began) / 1e9
            console.print(
                f"  {label}: {(done + moved) / 1e9:.1f} of {total / 1e9:.1f} GB, {rate:.2f} GB/s",
                markup=False,
            )

    return advance
