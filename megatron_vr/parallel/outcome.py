"""What the ends of a run's ranks mean: the command's exit code, and who is named."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vr.errors import Requeue
from megatron_vr.parallel.blame import Report
from megatron_vr.parallel.interrupt import SIGNALS

# A rank that ends with one of these has printed why.
SPOKEN = (1, 2, 130)
# Killed by nobody of us, and broken memory. Not SIGSEGV: a program's own mistake meets it on every
# host. Not SIGABRT: NCCL's watchdog ends sound ranks with it where another host is the cause.
OF_THE_HOST = (signal.SIGKILL, signal.SIGBUS)
WANT_OF_MEMORY = (
    "was killed for want of memory; raise `memory` of this kind of job, as in cluster.train.memory "
    "(0: all of the node's), or give each node a smaller part of the model (parallel)"
)
GOES_ON = "the same command goes on from the last checkpoint or part"


@dataclass(frozen=True)
class Failure:
    """A rank that did not end with 0. `code` is negative for a signal, as in subprocess."""

    rank: int
    pid: int
    code: int
    at: int  # when its end was seen, in seconds since 1970


@dataclass(frozen=True)
class Outcome:
    """The exit code of the command, what it has to say, and whether its host is to blame."""

    code: int
    line: str | None = None
    blame: bool = False


@dataclass(frozen=True)
class End:
    """How the ranks of a host ended, as the launcher with the node rank `teller` tells the others.

    `node` is the host that it is put down to; `line` is None where a rank has said why in its log.
    """

    teller: int
    node: str
    code: int
    line: str | None = None
    blame: bool = False

    @property
    def is_stop(self) -> bool:
        """Whether the ranks were asked to stop, and have saved."""
        return self.code == Requeue.exit_code


def judge(failures: Sequence[Failure], stopping: bool, starved: bool = False) -> Outcome:
    """The first failure counts: the others follow from it.

    `stopping`: the launcher was asked to stop, and has passed the signal on to the ranks.
    `starved`: the kernel has killed processes of this host's ranks for want of memory. On another
    host they would want as much.
    """
    if not failures:
        return Outcome(0)
    first = min(failures, key=lambda failure: (failure.at, _rarity(failure.code, stopping)))
    # A rank that has just begun does not handle signals yet, and has nothing to save.
    stopped_early = stopping and -first.code in SIGNALS
    if first.code == Requeue.exit_code or stopped_early:
        return Outcome(Requeue.exit_code)
    if first.code in SPOKEN:
        return Outcome(first.code)
    starved = starved and -first.code == signal.SIGKILL
    how = WANT_OF_MEMORY if starved else _how(first.code)
    told = f"rank {first.rank} (pid {first.pid}) {how}; the other ranks were ended; {GOES_ON}"
    # Who is slow to stop is killed by those who asked it to.
    of_the_host = -first.code in OF_THE_HOST and not stopping and not starved
    return Outcome(max(first.code, 1), told, blame=of_the_host)


def end_of(
    outcome: Outcome,
    teller: int,
    node: str,
    blamed: Sequence[Report] = (),
    followed: Sequence[Report] = (),
) -> End:
    """What a launcher on `node` tells: its ranks' outcome, whom they have blamed, or the host whose
    failure they `followed`."""
    if outcome.line is not None or outcome.code not in SPOKEN:
        return End(teller, node, outcome.code, outcome.line, outcome.blame)
    if blamed:
        return End(teller, blamed[0].host, outcome.code, f"{blamed[0].reason}; {GOES_ON}", True)
    return End(teller, followed[0].host if followed else node, outcome.code)


def first_cause(ends: Sequence[End]) -> End:
    """Of several hosts' ends, in the order in which they were told, the one that counts.

    A failure without a line may follow from what another host tells a moment later.
    """
    return next((end for end in ends if end.line is not None or end.is_stop), ends[0])


def _rarity(code: int, stopping: bool) -> int:
    """Of failures seen in one second the one less likely to follow from another is the first."""
    if code < 0 and -code not in SIGNALS:
        return 0
    if code < 0:
        # Without a stop it is the agent that ends the others so.
        return 1 if stopping else 4
    return 2 if code != Requeue.exit_code else 3


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
