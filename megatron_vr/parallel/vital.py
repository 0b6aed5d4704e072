"""Who of the ranks is dead: decided from what was seen, without a clock or a connection."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """A rank's process. `namespace` tells apart process ids of two hosts, or containers of one."""

    rank: int
    pid: int
    host: str
    namespace: str
    started: int  # when the process began, in ticks of its host: process ids are used again

    def __str__(self) -> str:
        return f"rank {self.rank} (pid {self.pid} on {self.host})"

    def beside(self, other: Member) -> bool:
        """Whether the two see each other's process ids."""
        return (self.host, self.namespace) == (other.host, other.namespace)


@dataclass(frozen=True)
class Silence:
    """For how many seconds, up to the time `at`, a counter has stood at `count`."""

    count: int
    at: float
    seconds: float = 0.0

    def after(self, count: int, now: float, longest_step: float) -> Silence:
        """With a new reading at `now`.

        At most `longest_step` seconds are added: who was itself stopped for long (a suspended
        machine) has heard nothing, but has not listened either.
        """
        if count != self.count:
            return Silence(count, now)
        return Silence(count, now, self.seconds + min(now - self.at, longest_step))


@dataclass(frozen=True)
class Verdict:
    """Why the run ends: `rank` died, or it failed and leaves with `code`."""

    rank: int
    reason: str
    code: int = 1
    died: bool = True


def watched_by(rank: int, size: int, left: Collection[int]) -> int | None:
    """The next rank, in a ring, that has not left; None when all others have."""
    ring = [(rank + step) % size for step in range(1, size)]
    return next((other for other in ring if other not in left), None)


def find_dead(
    watched: int | None,
    silent_seconds: float,
    patience_seconds: float,
    gone: Sequence[int],
    left: Collection[int],
) -> Verdict | None:
    """The first dead rank: one whose process is `gone`, or `watched` when silent for too long.

    Ranks in `left` have said goodbye and are never dead.
    """
    vanished = [rank for rank in gone if rank not in left]
    if vanished:
        return Verdict(min(vanished), "its process is gone")
    if watched is None or watched in left or silent_seconds < patience_seconds:
        return None
    return Verdict(watched, f"it gave no sign for {patience_seconds:g} seconds")
