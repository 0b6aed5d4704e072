"""What a person sees while a stage works: one bar for each, on standard error, and `status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from megatron_vr.algorithm.progress_file import Counted, ProgressFile

LINE_EVERY_SECONDS = 20.0


def nobody() -> int:
    """What other processes did where there are none."""
    return 0


@dataclass(frozen=True)
class Whole:
    """The stage in `folder` of which a bar tells a part: `total` units (None: unknown), `before`
    of them done when the bar begins; `others()` were done by other processes since."""

    folder: Path
    total: int | None
    before: int = 0
    others: Callable[[], int] = nobody


class Bar:
    """Call it with how many units were done now."""

    def __init__(self, show: Callable[[int], None], counted: Counted) -> None:
        self._show = show
        self._counted = counted

    def __call__(self, amount: int) -> None:
        """`amount` more are done."""
        self._counted.made += amount
        self._show(amount)

    def earlier(self, amount: int) -> None:
        """`amount` more were done by an earlier attempt."""
        self._counted.earlier += amount
        self._show(amount)

    def tokens(self, amount: int) -> None:
        """`amount` tokens more were worked on."""
        self._counted.tokens += amount


class Talk:
    """Lines and bars of the main process; the others are silent."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.console = Console(stderr=True, quiet=not speaks, highlight=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """One line of plain text."""
        self.console.print(text, markup=False)

    @contextmanager
    def bar(
        self, label: str, total: int | None, unit: str, whole: Whole | None = None
    ) -> Iterator[Bar]:
        """A bar of `total` `unit`s (None: nobody knows); yields what advances it.

        Where standard error is no terminal, a line is printed every 20 seconds instead. The folder
        of `whole` gets progress.json.
        """
        kept = whole or Whole(Path(), total)
        counted = Counted(unit, kept.total, kept.before, kept.others)
        told = whole is not None and self.speaks
        file = ProgressFile(kept.folder, counted.progress, self.line) if told else nullcontext()
        with file, self._shown(label, total, unit) as show:
            yield Bar(show, counted)

    @contextmanager
    def _shown(self, label: str, total: int | None, unit: str) -> Iterator[Callable[[int], None]]:
        if not self.console.is_terminal:
            yield self._lines(label, total, unit)
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(label, total=total)
            yield lambda amount: progress.update(task, advance=amount)

    def _lines(self, label: str, total: int | None, unit: str) -> Callable[[int], None]:
        done, printed = 0, time.monotonic()

        def advance(amount: int) -> None:
            nonlocal done, printed
            done += amount
            if time.monotonic() - printed >= LINE_EVERY_SECONDS:
                printed = time.monotonic()
                of = "" if total is None else f"/{total}"
                self.line(f"  {label}: {done}{of} {unit}")

        return advance
