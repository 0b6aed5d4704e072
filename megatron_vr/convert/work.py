"""Make a conversion's units, here or in several processes, and publish the folder they form."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from megatron_vr.convert.aside import Aside, Resumable, open_aside
from megatron_vr.convert.page_cache import crowds
from megatron_vr.convert.progress import transfer_bar
from megatron_vr.convert.units import Advance, Conversion, Unit
from megatron_vr.errors import CheckpointError
from megatron_vr.parallel.launch import end_with
from megatron_vr.traces.durable import sync_file

# Below this a process is not worth its start.
WORTH_A_PROCESS = 2**31
MOST_PROCESSES = 8
# Room for what is no tensor: the tokenizer, tables of contents.
SIDE_FILES = 2**26

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Done:
    """Bytes of tensors written, by this run and in all, and the seconds it took."""

    written: int
    total: int
    seconds: float


def carry_out(
    conversion: Conversion, destination: str | Path, processes: int | None = None
) -> Done:
    """Write `conversion` as the folder `destination`, which appears when it is whole.

    `processes` make units side by side (None: by size and cores). Run again after a kill, it goes
    on after the last finished file. Raises CheckpointError where the destination is not vacant or
    there is not enough room, and what the conversion raises; then nothing is left behind.
    """
    began = time.monotonic()
    final = Path(destination).absolute()
    identity = conversion.identity()
    with _full_disk_told(final), open_aside(final, identity) as aside:
        units = conversion.units
        made = {
            unit.name: result
            for unit in units
            if (result := aside.result(unit.name, unit.nbytes)) is not None
        }
        missing = [unit for unit in units if unit.name not in made]
        _check_room(aside.folder, missing)
        total = sum(unit.nbytes for unit in units)
        left = sum(unit.nbytes for unit in missing)
        count = processes or _suitable(left)
        with (
            transfer_bar(final.name, total, total - left) as advance,
            _Syncing(aside, total) as syncing,
        ):
            for unit, result in _make(conversion, missing, aside.folder, count, advance):
                made[unit.name] = result
                syncing.finished(unit, result)
        if conversion.identity() != identity:
            raise CheckpointError(f"what {final} is made from changed meanwhile; try again.")
        aside.keep(made)
        conversion.finish(aside.folder, made)
        aside.publish()
    return Done(left, total, time.monotonic() - began)


@contextmanager
def _full_disk_told(final: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CheckpointError(
            f"{final} could not be written ({error.strerror}); nothing of it is left. Make room or "
            "write to another disk."
        ) from error


class _Syncing:
    """Files go to the disk for good, one after the other, while others are being made."""

    def __init__(self, aside: Aside, total: int) -> None:
        self._aside = aside
        self._forget = crowds(total)
        self._thread = ThreadPoolExecutor(1, "sync")
        self._last: Future[None] | None = None

    def __enter__(self) -> _Syncing:
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown(wait=True)
        if self._last is not None and error == (None, None, None):
            self._last.result()

    def finished(self, unit: Unit, result: Any) -> None:
        """Record `unit` once it is durable; returns when the one before is. Raises its error."""
        if self._last is not None:
            self._last.result()
        self._last = self._thread.submit(self._record, unit, result)

    def _record(self, unit: Unit, result: Any) -> None:
        sync_file(self._aside.folder / unit.name, forget=self._forget)
        self._aside.finished(unit.name, result)


def _suitable(nbytes: int) -> int:
    cores = len(os.sched_getaffinity(0))
    return max(1, min(MOST_PROCESSES, cores, nbytes // WORTH_A_PROCESS))


def _check_room(folder: Path, units: Sequence[Unit]) -> None:
    # What a killed run had begun of these files is written over.
    begun = sum(path.stat().st_size for unit in units if (path := folder / unit.name).exists())
    needed = sum(unit.nbytes for unit in units) + SIDE_FILES
    free = shutil.disk_usage(folder).free + begun
    if needed > free:
        raise Resumable(
            f"{folder.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are to be "
            "written; make room or write to another disk."
        )


def _make(
    conversion: Conversion, units: Sequence[Unit], folder: Path, processes: int, advance: Advance
) -> Iterator[tuple[Unit, Any]]:
    if min(processes, len(units)) > 1:
        yield from _make_in_processes(conversion, units, folder, processes, advance)
        return
    for unit in units:
        yield unit, _make_one(conversion, unit, folder, advance)


def _make_one(conversion: Conversion, unit: Unit, folder: Path, advance: Advance) -> Any:
    return conversion.make(unit, folder / unit.name, advance)


def _make_in_processes(
    conversion: Conversion, units: Sequence[Unit], folder: Path, processes: int, advance: Advance
) -> Iterator[tuple[Unit, Any]]:
    # Not forked: this process may have threads.
    pool = ProcessPoolExecutor(
        min(processes, len(units)), get_context("spawn"), end_with, (os.getpid(),)
    )
    with pool:
        waiting = {
            pool.submit(_make_one, conversion, unit, folder, _silent): unit for unit in units
        }
        told = 0
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                written = _written(units, folder)
                advance(written - told)
                told = written
                # What succeeded first, so that it is kept where another failed.
                for future in sorted(finished, key=lambda one: one.exception() is not None):
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise Resumable(
                "a process of the conversion was killed, perhaps for want of memory; the same "
                "command goes on after the last finished file: use fewer with --processes."
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _silent(amount: int) -> None:
    """The bar is told by the process that shows it."""


def _written(units: Sequence[Unit], folder: Path) -> int:
    paths = [folder / unit.name for unit in units]
    return sum(path.stat().st_size for path in paths if path.exists())
