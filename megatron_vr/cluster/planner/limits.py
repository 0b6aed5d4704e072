"""Wall-time limits: what a job does until one, and how often it starts again. Pure."""

from __future__ import annotations

import math


def slurm_seconds(time: str) -> int:
    """Seconds of a time as sbatch reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
        return ((int(days) * 24 + hours) * 60 + minutes) * 60 + seconds
    if len(parts) == 1:
        return parts[0] * 60
    if len(parts) == 2:
        return parts[0] * 60 + parts[1]
    return (parts[0] * 60 + parts[1]) * 60 + parts[2]


def restarts(work: float, start: float, limit: float, save: float) -> int | None:
    """How often a job of `work` seconds starts again that takes `start` to begin and is told
    `save` seconds before its `limit` to save; None where no time is left to work."""
    each = limit - save - start
    if each <= 0:
        return None if work > 0 else 0
    return max(0, math.ceil(work / each) - 1)
