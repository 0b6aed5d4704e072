"""Times of work on the device, and what it took of its memory."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tools.bench.on_gpu.place import Place

# Before the clock starts: a card at rest needs that long to reach the clocks it then keeps.
WARM_SECONDS = 0.5


def median_seconds(work: Callable[[], Any], place: Place, repeats: int = 30) -> float:
    """The median of `repeats` runs of `work`, by the device's own events, once it is warm."""
    if place.rehearse:
        return Timed.of(work, place, most=2).seconds
    began = time.perf_counter()
    while time.perf_counter() - began < WARM_SECONDS:
        work()
        torch.cuda.synchronize()
    pairs = [(_event(), _event()) for _ in range(repeats)]
    for start, end in pairs:
        start.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in pairs) / 1e3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


@dataclass(frozen=True)
class Timed:
    """`seconds` is the median of `all_seconds`, `first` what the first run took (it compiles)."""

    seconds: float
    first: float
    all_seconds: tuple[float, ...]

    @staticmethod
    def of(work: Callable[[], Any], place: Place, *, most: int = 5, warm: int = 2) -> Timed:
        """Up to `most` timed runs after `warm` ones; fewer where the process's time ends."""
        first = _seconds(work)
        for _ in range(1, place.sized(warm, 1)):
            _seconds(work)
        found = [_seconds(work)]
        while len(found) < place.sized(most, 2) and place.left > 3 * found[-1]:
            found.append(_seconds(work))
        return Timed(statistics.median(found), first, tuple(found))


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def forget_peak() -> None:
    """Begin the count of the largest memory anew."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> dict[str, float]:
    """The most that tensors took, and that the allocator held for them, in GiB; none on a CPU."""
    if not torch.cuda.is_available():
        return {}
    return {
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
        "reserved_gib": torch.cuda.max_memory_reserved() / 2**30,
    }


def collect() -> None:
    """Free what was dropped."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
