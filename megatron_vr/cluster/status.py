"""How each stage of a run is: pure decisions over what the folder, the logs and Slurm tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_vr.algorithm.progress_file import StageProgress
from megatron_vr.cluster.job_state import JobState

State = Literal[
    "done",
    "running",
    "ending",
    "pending",
    "held",
    "failed",
    "cancelled",
    "not done",
    "unknown",
    "submitted",
    "begun",
    "to do",
]
# Without Slurm a stage counts as being worked on while it says something.
QUIET_SECONDS = 120.0
_HELD = ("REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED", "STOPPED")
_STARTING = ("CONFIGURING", "REQUEUED", "REQUEUE_FED")
_ERROR = re.compile(r"megatron-vr: |\S*(sbatch|srun|slurmstepd|slurmd)\S*: (error|fatal): ")


@dataclass(frozen=True)
class Evidence:
    """What is known of one stage. `submitted`: the newest job given to Slurm for it; `job`: what
    Slurm says of it, None where it does not know; `asked`: whether Slurm could be asked."""

    name: str
    done: bool
    begun: bool
    submitted: int | None = None
    job: JobState | None = None
    asked: bool = False
    progress: StageProgress | None = None
    error: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class Row:
    """One stage as `status` shows it; times in seconds, None and "" where nothing is known."""

    stage: str
    state: State
    why: str
    job: int | None
    nodes: str
    restarts: int
    done: int | None
    total: int | None
    unit: str
    tokens_per_second: float | None
    eta_seconds: float | None
    seconds: int | None
    limit_seconds: int | None
    starts: float | None
    quiet_seconds: float | None
    error: str | None
    log: str | None


def make_row(seen: Evidence, now: float) -> Row:
    """The row of one stage at the time `now` (seconds since 1970)."""
    state, why = state_of(seen)
    job, progress = seen.job, seen.progress
    working = _working(state, job, progress, now)
    left = working.seconds_left if working is not None else None
    age = now - progress.at if progress is not None else None
    runs = state in ("running", "ending")
    return Row(
        stage=seen.name,
        state=state,
        why=why,
        job=job.id if job is not None else seen.submitted,
        nodes=job.nodes if job is not None else "",
        restarts=(job.restarts or 0) if job is not None else 0,
        done=progress.done if progress is not None else None,
        total=progress.total if progress is not None else None,
        unit=progress.unit if progress is not None else "",
        tokens_per_second=working.tokens_per_second if working is not None else None,
        eta_seconds=max(0.0, left - (age or 0.0)) if left is not None else None,
        seconds=job.seconds if job is not None and runs else None,
        limit_seconds=job.limit_seconds if job is not None else None,
        starts=job.starts if job is not None and state == "pending" else None,
        quiet_seconds=age if state in ("running", "begun") else None,
        error=None if state == "done" else seen.error,
        log=seen.log,
    )


def state_of(seen: Evidence) -> tuple[State, str]:
    """The state and, where there is more to say, why."""
    job = seen.job
    if seen.done:
        return "done", ""
    if job is None:
        if seen.submitted is None:
            return ("begun", "") if seen.begun else ("to do", "")
        return ("unknown", "Slurm no longer knows its job") if seen.asked else ("submitted", "")
    if job.state == "RUNNING":
        return "running", ""
    if job.state == "PENDING":
        return "pending", job.reason
    if job.alive:
        in_words: State = "held" if job.state in _HELD else "ending"
        return ("pending" if job.state in _STARTING else in_words), _words(job.state)
    if job.state == "COMPLETED":
        return "not done", "its job ended well, but its results are not there"
    if job.state == "CANCELLED":
        orphan = job.reason in ("Dependency", "DependencyNeverSatisfied")
        return "cancelled", "what it waits for did not end well" if orphan else job.reason
    known = "" if job.state == "FAILED" else _words(job.state)
    return "failed", known or ("" if job.reason == "NonZeroExitCode" else job.reason)


def _words(state: str) -> str:
    return state.lower().replace("_", " ")


def total_line(rows: Sequence[Row]) -> str:
    """As in `7 of 12 done, 1 running (2 h 5 min left), 4 pending`."""
    told = [f"{sum(row.state == 'done' for row in rows)} of {len(rows)} done"]
    for state in dict.fromkeys(row.state for row in rows):
        if state in ("done", "to do"):
            continue
        found = [row for row in rows if row.state == state]
        left = longest(row.eta_seconds for row in found)
        about = f" (about {duration(left)} left)" if left is not None else ""
        told.append(f"{len(found)} {state}{about}")
    return ", ".join(told)


def longest(etas: Iterable[float | None]) -> float | None:
    """When the last one of those that are known ends."""
    return max((eta for eta in etas if eta is not None), default=None)


def duration(seconds: float) -> str:
    """As in 45 s, 12 min, 2 h 5 min, 1 d 3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def last_error(log: str, name: str) -> str | None:
    """The last line of `log` in which our programs, or Slurm's, say what went wrong.

    Our own go first: where a process failed, srun only tells that it did. So does the line with
    which the script of job `name` ends: it counts where there is no other.
    """
    lines = [line.strip() for line in log.splitlines() if _ERROR.match(line.strip())]
    own = [line for line in lines if line.startswith("megatron-vr: ")]
    causes = [line for line in own if not line.startswith(f"megatron-vr: {name} ")]
    found = causes or own or lines
    return found[-1] if found else None


def _working(
    state: State, job: JobState | None, progress: StageProgress | None, now: float
) -> StageProgress | None:
    """The progress, where it is of the attempt that is at work now."""
    if progress is None or state not in ("running", "begun"):
        return None
    if job is None:
        # Nobody says whether a process still works on it.
        rate = progress.per_second
        quiet = max(QUIET_SECONDS, 3 / rate if rate else 0.0)
        return progress if now - progress.at < quiet else None
    before = job.starts is not None and progress.at < job.starts
    return None if before else progress
