"""`cancel`: end what is queued and running of a run. Done twice, it does nothing more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.cluster.job_state import JobState
from megatron_vr.cluster.slurm import Slurm
from megatron_vr.cluster.watched import Watched, live_jobs, read_watched
from megatron_vr.errors import SettingsError, StageError
from megatron_vr.problems.nearest import suggestion
from megatron_vr.traces.durable import write_durably

JOB_MARK = "Cancelled: it does not start again. `megatron-vr submit` submits another.\n"
MARK = "The run was cancelled: its jobs do not start again. `megatron-vr submit` takes it up.\n"


@dataclass(frozen=True)
class Ended:
    """A job that was told to end, as it was before."""

    stage: str
    job: JobState


def cancel(run: Path, stages: Sequence[str], slurm: Slurm) -> list[Ended]:
    """End the live jobs of the run in `run`, or of its `stages` alone; those that were ended.

    The run, or each of its jobs, is marked first, so that no job starts again meanwhile: one that
    saves just now would be requeued even after its end was ordered. A job's mark outlives the next
    `submit`, the run's does not.
    Raises SettingsError for a name of no stage, StageError where Slurm cannot be asked or the run
    was never submitted.
    """
    watched = read_watched(run)
    chosen = _chosen(watched, stages)
    if not watched.submitted:
        raise StageError(
            f"{watched.files.run} has no jobs; a run by `megatron-vr run` ends with Ctrl-C or "
            "SIGTERM, after saving"
        )
    if not stages:
        write_durably(watched.files.cancelled, MARK)
    ended = [Ended(name, job) for name, job in live_jobs(watched.files, slurm) if name in chosen]
    for one in ended:
        mark = watched.files.cancelled_job(one.stage, one.job.id)
        mark.parent.mkdir(parents=True, exist_ok=True)
        write_durably(mark, JOB_MARK)
    slurm.cancel(one.job.id for one in ended)
    return ended


def _chosen(watched: Watched, stages: Sequence[str]) -> set[str]:
    """The names of the jobs that `stages` name, by their folder or by the last part of it."""
    names = {stage.name for stage in watched.stages} | set(watched.ids)
    if not stages:
        return names
    chosen: set[str] = set()
    for asked in stages:
        found = {name for name in names if asked in (name, name.rpartition("/")[2])}
        if not found:
            told = suggestion(asked, names | {name.rpartition("/")[2] for name in names})
            raise SettingsError(f"--stage {asked} is no stage of this run; {told}")
        chosen |= found
    return chosen
