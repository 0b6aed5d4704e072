"""What Slurm knows of a job, read from the columns of squeue and sacct. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Of the states in squeue(1); every other one is of a job that runs, waits, or will.
ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    }
)
# Columns by width in bytes: not every squeue knows --json, or other ways to part them.
_COLUMNS = {
    "JobID": 20,
    "State": 24,
    "RestartCnt": 12,
    "TimeUsed": 24,
    "TimeLimit": 24,
    "StartTime": 24,
    "Reason": 160,
    "Name": 320,
    "NodeList": 2048,
}
SQUEUE_FORMAT = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
# A name may hold what parts the columns, so it comes last.
SACCT_FORMAT = "JobIDRaw,State,Elapsed,Timelimit,Start,Reason,NodeList,JobName"
_NONE = ("", "None", "(null)", "N/A", "Unknown", "None assigned")
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)")


@dataclass(frozen=True)
class JobState:
    """One job as Slurm sees it now.

    `nodes` is a list as Slurm writes it, as in gpu[1-4]; `seconds` that it runs since its last
    start; `starts`: when it began or, while it waits, when Slurm expects that (seconds since 1970).
    None: Slurm does not say.
    """

    id: int
    name: str
    state: str
    reason: str = ""
    nodes: str = ""
    restarts: int | None = None
    seconds: int | None = None
    limit_seconds: int | None = None
    starts: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it waits or runs."""
        return self.state not in ENDED

    @property
    def failed(self) -> bool:
        """Whether it ended, and not well."""
        return self.state in ENDED - {"COMPLETED"}


def read_squeue(output: bytes) -> Iterator[JobState]:
    """The jobs in what `squeue --noheader --Format=SQUEUE_FORMAT` printed."""
    for line in output.split(b"\n"):
        if not line.strip():
            continue
        values, start = {}, 0
        for name, width in _COLUMNS.items():
            values[name] = line[start : start + width].decode(errors="replace").strip()
            start += width
        yield JobState(
            id=int(values["JobID"]),
            name=values["Name"],
            state=values["State"],
            reason=_text(values["Reason"]),
            nodes=_text(values["NodeList"]),
            restarts=_whole(values["RestartCnt"]),
            seconds=read_time(values["TimeUsed"]),
            limit_seconds=read_time(values["TimeLimit"]),
            starts=_whole(values["StartTime"]),
        )


def read_sacct(output: bytes) -> Iterator[JobState]:
    """The jobs in what `sacct --noheader --parsable2 --format=SACCT_FORMAT` printed.

    How often they were started again is not known.
    """
    for line in output.decode(errors="replace").splitlines():
        number, state, used, limit, start, reason, nodes, name = line.split("|", maxsplit=7)
        yield JobState(
            id=int(number),
            name=name,
            state=state.split()[0],  # as in "CANCELLED by 1000"
            reason=_text(reason),
            nodes=_text(nodes),
            seconds=read_time(used),
            limit_seconds=read_time(limit),
            starts=_whole(start),
        )


def read_time(text: str) -> int | None:
    """Seconds of D-HH:MM:SS, HH:MM:SS or MM:SS; None for what is no time, as in UNLIMITED."""
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _text(value: str) -> str:
    return "" if value in _NONE else value


def _whole(value: str) -> int | None:
    return int(value) if value.isdigit() else None
