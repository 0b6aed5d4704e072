"""`status`: the rows of a run, from its folder, the logs of its jobs, and Slurm."""

from __future__ import annotations

import os
import time
from pathlib import Path

from megatron_vr.algorithm.progress_file import read_progress
from megatron_vr.cluster.slurm import Slurm
from megatron_vr.cluster.status import Evidence, Row, last_error, make_row
from megatron_vr.cluster.watched import Known, Stage, Watched, ask_slurm, read_watched

TAIL_BYTES = 256 * 1024


def survey(run: Path, slurm: Slurm) -> tuple[list[Row], str | None]:
    """A row for each stage of the run in `run`, and why Slurm was not asked, where it should be."""
    watched = read_watched(run)
    known = ask_slurm(watched, slurm)
    now = time.time()
    rows = [make_row(_evidence(watched, known, stage), now) for stage in watched.stages]
    return rows, known.why_not


def _evidence(watched: Watched, known: Known, stage: Stage) -> Evidence:
    job, submitted = known.jobs.get(stage.name), watched.ids.get(stage.name)
    number = job.id if job is not None else submitted
    log = watched.log(stage, number) if number is not None else None
    tail = _tail(log) if log is not None and not stage.done else None
    return Evidence(
        name=stage.name,
        done=stage.done,
        begun=stage.begun,
        submitted=submitted,
        job=job,
        asked=watched.submitted and known.why_not is None,
        progress=read_progress(stage.folder),
        error=last_error(tail, stage.name) if tail is not None else None,
        log=str(log) if log is not None and tail is not None else None,
    )


def _tail(log: Path) -> str | None:
    """The end of a log; None while there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return None
