"""Where the time of a step goes, how uneven it is over ranks, and the most memory taken."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Literal

import torch

Phase = Literal["data", "forward_backward", "optimizer", "checkpoint"]

KIB, GIB = 2**10, 2**30


@dataclass(frozen=True)
class PhaseSeconds:
    """Seconds of wall time in each phase."""

    data: float = 0.0
    forward_backward: float = 0.0
    optimizer: float = 0.0
    checkpoint: float = 0.0


def wait_for_device() -> None:
    """Return once the GPU has done all it was given; at once without a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class StepClock:
    """Adds up the wall time of phases: `with clock.phase("data"): ...`, then `clock.take()`.

    A GPU works behind the process that feeds it, so a phase is charged with the time this process
    spends in it: work that is still under way at its end falls to the phase that first waits for
    the GPU. The sum over a step that ends by reading its loss is right all the same. With `exact`
    the clock waits for the GPU where a phase begins and ends, so that each is charged with its own
    work. That costs speed: nothing is prepared or communicated across the edges any more.
    `now` gives seconds, `wait` waits for the device.
    """

    def __init__(
        self,
        exact: bool = False,
        now: Callable[[], float] = time.perf_counter,
        wait: Callable[[], None] = wait_for_device,
    ) -> None:
        self._exact = exact
        self._now = now
        self._wait = wait
        self._seconds = _none_yet()
        self._inside: Phase | None = None

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Charge the time inside to `name`, also where it ends with an error.

        Raises RuntimeError inside another phase: its time would count twice.
        """
        if self._inside is not None:
            raise RuntimeError(f"phase {name} begins inside phase {self._inside}")
        began = self._edge()
        self._inside = name
        try:
            yield
        finally:
            self._inside = None
            self._seconds[name] += self._edge() - began

    def take(self) -> PhaseSeconds:
        """The seconds since the last call; the clock begins anew.

        Raises RuntimeError inside a phase: part of its time would be lost.
        """
        if self._inside is not None:
            raise RuntimeError(f"the clock is read inside phase {self._inside}")
        taken, self._seconds = PhaseSeconds(**self._seconds), _none_yet()
        return taken

    def _edge(self) -> float:
        if self._exact:
            self._wait()
        return self._now()


def _none_yet() -> dict[str, float]:
    return {field.name: 0.0 for field in fields(PhaseSeconds)}


def spread(values: Sequence[float]) -> float:
    """(slowest − mean) / mean of the ranks' times: 0 where all are alike, as a single one is.

    Raises ValueError without a time.
    """
    if not values:
        raise ValueError("a spread needs the time of at least one rank")
    mean = sum(values) / len(values)
    # The mean of equal numbers can differ from them by rounding.
    return max(0.0, max(values) / mean - 1.0) if mean > 0 else 0.0


def peak_memory_gib() -> float:
    """The most memory this process held so far, in GiB (2³⁰ bytes).

    With a GPU what torch had allocated on the current one since
    `torch.cuda.reset_peak_memory_stats`, else the resident set of the process since its start.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    unit = 1 if sys.platform == "darwin" else KIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
