"""The status of a run as a table for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from megatron_vr.cluster.status import Row, duration, longest, total_line

STYLES = {"done": "green", "running": "bold", "failed": "red", "cancelled": "red", "held": "red"}
# Quieter than that, a stage that runs says how long.
QUIET_SECONDS = 600.0


def as_json(run: Path, rows: Sequence[Row], why_not: str | None) -> dict[str, Any]:
    """All that is known; `slurm` is why it was not asked, null where it was or need not be."""
    return {
        "run": str(run),
        "slurm": why_not,
        "done": sum(row.state == "done" for row in rows),
        "of": len(rows),
        "eta_seconds": longest(row.eta_seconds for row in rows),
        "stages": [asdict(row) for row in rows],
    }


def as_table(run: Path, rows: Sequence[Row], why_not: str | None, now: float) -> Group:
    """A line for each stage, the errors below, and the total."""
    table = Table(box=SIMPLE_HEAD)
    # Names may break anywhere where the window is narrow, numbers nowhere.
    for name in ("stage", "state", "nodes"):
        table.add_column(name, overflow="fold")
    for name in ("job", "done", "", "tokens/s", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row.stage),
            Text(_state(row, now), STYLES.get(row.state, "")),
            Text(row.nodes),
            "" if row.job is None else str(row.job),
            _done(row),
            f"{row.done / row.total:.0%}" if row.done is not None and row.total else "",
            "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
            "" if row.eta_seconds is None else duration(row.eta_seconds),
        )
    told: list[Any] = [table]
    told += [Text(f"{row.stage}: {_error(row)}") for row in rows if _error(row)]
    if why_not is not None:
        told.append(Text(f"{why_not}: this is what the run's folder alone tells", "yellow"))
    told.append(Text(f"{run}: {total_line(rows)}"))
    return Group(*told)


def _state(row: Row, now: float) -> str:
    told = [f"{row.state}: {row.why}" if row.why else str(row.state)]
    if row.restarts:
        told.append(f"requeued {row.restarts} times" if row.restarts > 1 else "requeued once")
    if row.starts is not None and row.starts > now:
        told.append(f"starts in {duration(row.starts - now)} or before")
    if row.seconds is not None:
        limit = "" if row.limit_seconds is None else f" of {duration(row.limit_seconds)}"
        told.append(f"{duration(row.seconds)}{limit}")
    loud = row.state == "begun" or (row.quiet_seconds or 0.0) > QUIET_SECONDS
    if row.quiet_seconds is not None and loud:
        told.append(f"last heard of {duration(row.quiet_seconds)} ago")
    return ", ".join(told)


def _done(row: Row) -> str:
    if row.done is None:
        return ""
    if not row.total:
        return f"{row.done} {row.unit}"
    return f"{row.done}/{row.total} {row.unit}"


def _error(row: Row) -> str:
    if row.error is None:
        return f"see {row.log}" if row.state == "failed" and row.log else ""
    return f"{row.error}  ({row.log})"
