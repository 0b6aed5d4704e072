"""What the ends of a run's ranks mean: the command's exit code, and who is named."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vr.errors import Requeue
from megatron_vr.parallel.interrupt import SIGNALS

# A rank that ends with one of these has printed why.
SPOKEN = (1, 2, 130)


@dataclass(frozen=True)
class Failure:
    """A rank that did not end with 0. `code` is negative for a signal, as in subprocess."""

    rank: int
    pid: int
    code: int
    at: int  # when its end was seen, in seconds since 1970


@dataclass(frozen=True)
class Outcome:
    """The exit code of the command, and what it has to say."""

    code: int
    line: str | None = None


def judge(failures: Sequence[Failure], stopping: bool) -> Outcome:
    """The first failure counts: the others follow from it.

    `stopping`: the launcher was asked to stop, and has passed the signal on to the ranks.
    """
    if not failures:
        return Outcome(0)
    first = min(failures, key=lambda failure: (failure.at, _rarity(failure.code)))
    # A rank that has just begun does not handle signals yet, and has nothing to save.
    stopped_early = stopping and -first.code in SIGNALS
    if first.code == Requeue.exit_code or stopped_early:
        return Outcome(Requeue.exit_code)
    if first.code in SPOKEN:
        return Outcome(first.code)
    told = (
        f"rank {first.rank} (pid {first.pid}) {_how(first.code)}; the other ranks were ended; the "
        "same command goes on from the last checkpoint or part"
    )
    return Outcome(max(first.code, 1), told)


def _rarity(code: int) -> int:
    """Of failures seen in one second the one less likely to follow from another is the first."""
    if code < 0:
        return 1 if -code in SIGNALS else 0
    return 2 if code != Requeue.exit_code else 3


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
