"""What is to be submitted, and after what: pure decisions.

Invariants:
- what is done, or queued with all it needs, is left alone;
- a job that is submitted waits for every parent that is not done, and each of these is queued or
  submitted before it;
- a job that waits for a parent which is submitted anew is replaced: its own parent is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_vr.cluster.job import Job
from megatron_vr.errors import StageError

What = Literal["done", "queued", "submit"]


@dataclass(frozen=True)
class Live:
    """A job that Slurm has queued or runs."""

    id: int
    running: bool


@dataclass(frozen=True)
class Decision:
    """What becomes of `job`. `waits_for`: names of its parents that are not done; `replaces`: a
    queued job that can no longer begin."""

    job: Job
    what: What
    waits_for: tuple[str, ...] = ()
    id: int | None = None
    replaces: int | None = None


def decide(
    jobs: Sequence[Job],
    chosen: Collection[str],
    done: Collection[str],
    live: Mapping[str, Live],
) -> list[Decision]:
    """A decision for each of `jobs` (every one after its parents) that is `chosen` by name.

    Raises StageError where a chosen one needs a job that is not chosen, not done and not queued, or
    where a job runs although what it reads is to be made anew.
    """
    decisions: list[Decision] = []
    anew: set[str] = set()
    for job in jobs:
        if job.name not in chosen:
            continue
        if job.name in done:
            decisions.append(Decision(job, "done"))
            continue
        own, lost = live.get(job.name), anew & set(job.parents)
        if own is not None and not lost:
            decisions.append(Decision(job, "queued", id=own.id))
            continue
        if own is not None and own.running:
            raise StageError(
                f"{job.name} runs as job {own.id}, but {', '.join(sorted(lost))}, which it reads, "
                f"is not done and has no job; end it first (`scancel {own.id}`)"
            )
        waits_for = tuple(parent for parent in job.parents if parent not in done)
        _check_parents(job, waits_for, live, anew)
        anew.add(job.name)
        replaces = own.id if own is not None else None
        decisions.append(Decision(job, "submit", waits_for, replaces=replaces))
    return decisions


def _check_parents(
    job: Job, waits_for: Sequence[str], live: Mapping[str, Live], anew: Collection[str]
) -> None:
    for parent in waits_for:
        if parent not in anew and parent not in live:
            raise StageError(
                f"{job.name} needs {parent}, which is neither done nor queued; submit that too "
                "(without --from, or from an earlier stage)"
            )
