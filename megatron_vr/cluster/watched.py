"""What `status` and `cancel` go by: a run's stages and its jobs, from its folder and from Slurm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.algorithm.benchmarking.of_run import results_of
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.algorithm.run import RESULTS
from megatron_vr.cluster.job import Job, RunFiles
from megatron_vr.cluster.job_state import JobState
from megatron_vr.cluster.jobs import BENCHMARKS, make_jobs, slurm_prefix
from megatron_vr.cluster.record import read_record
from megatron_vr.cluster.slurm import Slurm
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import DataError
from megatron_vr.report.run_folder import SETTINGS
from megatron_vr.traces.store import DONE, FINGERPRINT


@dataclass(frozen=True)
class Stage:
    """A stage of the run, whose results lie in `folder`; `job`: as it is submitted, if at all."""

    name: str
    folder: Path
    done: bool
    begun: bool
    job: Job | None = None


@dataclass(frozen=True)
class Watched:
    """A run: its stages in order, and the newest job of each that was submitted."""

    files: RunFiles
    stages: tuple[Stage, ...]
    ids: Mapping[str, int]
    submitted: bool

    def log(self, stage: Stage, number: int) -> Path | None:
        """What job `number` of `stage` prints."""
        return None if stage.job is None else self.files.log(stage.job, number)


@dataclass(frozen=True)
class Known:
    """The newest job of each stage that Slurm knows; `why_not`: why it was not asked."""

    jobs: Mapping[str, JobState]
    why_not: str | None = None


def read_watched(run: Path) -> Watched:
    """The run in the folder `run`, with or without jobs. Nothing but the folder is read.

    Raises DataError where there is none, StageError where its record of jobs is damaged.
    """
    files = RunFiles.of(run)
    submitted = files.settings.exists()
    settings = _settings(files, submitted)
    record = read_record(files)
    return Watched(
        files,
        _stages(settings, files, submitted),
        {name: all_[-1].id for name, all_ in record.items()},
        submitted,
    )


def ask_slurm(watched: Watched, slurm: Slurm) -> Known:
    """What Slurm knows of the run's jobs; also of jobs that `submit` could not record any more."""
    if not watched.submitted:
        return Known({}, None)
    if slurm.why_not is not None:
        return Known({}, slurm.why_not)
    by_id = slurm.jobs(watched.ids.values())
    jobs = {name: by_id[number] for name, number in watched.ids.items() if number in by_id}
    prefix = slurm_prefix(watched.files.run)
    for whole, found in slurm.named(prefix).items():
        name = whole.removeprefix(prefix)
        newer = [job for job in found if job.alive and job.id > watched.ids.get(name, 0)]
        if newer:
            jobs[name] = newer[-1]
    return Known(jobs)


def live_jobs(files: RunFiles, slurm: Slurm) -> list[tuple[str, JobState]]:
    """All jobs of the run that wait or run, with their names, oldest first: those of the user by
    these names, and those whose numbers are recorded, which may be of others."""
    prefix = slurm_prefix(files.run)
    found = {
        job.id: (whole.removeprefix(prefix), job)
        for whole, jobs in slurm.named(prefix).items()
        for job in jobs
    }
    ids = {submission.id: name for name, all_ in read_record(files).items() for submission in all_}
    found |= {number: (ids[number], job) for number, job in slurm.jobs(ids).items()}
    return [found[number] for number in sorted(found) if found[number][1].alive]


def _settings(files: RunFiles, submitted: bool) -> Settings:
    file = files.settings if submitted else files.run / SETTINGS
    if not file.exists():
        several = sorted(path.parent.name for path in files.run.glob(f"seed-*/{SETTINGS}"))
        told = f"; it holds several: {', '.join(several)}" if several else ""
        raise DataError(
            f"{files.run} is not the folder of a run{told or f': it has no {SETTINGS}'}; give the "
            "folder that `run.folder` names"
        )
    settings = load_settings(file)
    own = settings.run.model_copy(update={"folder": files.run})
    return settings.model_copy(update={"run": own})


def _stages(settings: Settings, files: RunFiles, submitted: bool) -> tuple[Stage, ...]:
    # Digests of problem files change fingerprints, not which stages there are, nor where.
    plan = make_plan(settings, {})
    jobs = {job.name: job for job in make_jobs(plan, settings)} if submitted else {}
    stages = []
    for node in plan.nodes:
        name, folder = node.name, node.path
        done, begun = (folder / DONE).exists(), (folder / FINGERPRINT).exists()
        stages.append(Stage(name, folder, done, begun, jobs.get(name)))
    if submitted and settings.cluster.benchmarks:
        out = results_of(files.run, MAIN_ARM, settings.run.iterations)
        done, begun = (out / RESULTS).exists(), out.exists()
        stages.append(Stage(BENCHMARKS, out, done, begun, jobs.get(BENCHMARKS)))
    return tuple(stages)
