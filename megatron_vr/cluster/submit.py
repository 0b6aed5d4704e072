"""`submit`: from settings to queued jobs. What is done or queued already is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cluster.chain import Decision, Live, decide
from megatron_vr.cluster.checked import check_jobs, check_programs, coreless
from megatron_vr.cluster.done import done_jobs
from megatron_vr.cluster.frozen_settings import check_frozen, freeze
from megatron_vr.cluster.job import Job, RunFiles
from megatron_vr.cluster.jobs import make_jobs, select, slurm_prefix
from megatron_vr.cluster.prepare import PREPARED, prepare_here
from megatron_vr.cluster.record import Submission, add_submission
from megatron_vr.cluster.script import render
from megatron_vr.cluster.slurm import Slurm
from megatron_vr.cluster.watched import live_jobs
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError, StageError
from megatron_vr.traces.durable import write_durably
from megatron_vr.traces.lock import locked

# A job that was ended may take as long as its cluster's KillWait and epilog.
ENDING_LOOKS, ENDING_SECONDS = 60, 5.0


@dataclass(frozen=True)
class Asked:
    """What `submit` was asked for; see the command's help."""

    settings: Settings
    site: SiteSettings
    first: str | None = None
    last: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Submitted:
    """A line of the table: a job, what became of it and what Slurm said.

    `state` is done, queued (before) or submitted; in a dry run also to submit, or made here.
    """

    job: Job
    state: str
    id: int | None
    after: tuple[str, ...]
    said: str = ""


def submit(asked: Asked, slurm: Slurm, say: Callable[[str], None]) -> list[Submitted]:
    """Submit what is missing, every job after those it reads from; `say` prints progress.

    Nothing is submitted where Slurm would refuse one of the jobs. Raises SettingsError or
    StageError for settings, stages or jobs that cannot be, with Slurm's own words where it refuses.
    """
    settings = asked.settings
    files = RunFiles.of(settings.run.folder)
    plan = make_plan(settings, digests(settings))
    plan.check()
    jobs = make_jobs(plan, settings)
    chosen = {job.name for job in select(jobs, asked.first, asked.last)}
    # In a container, or behind another command, things are installed that this host has not.
    own = asked.site.command is None and asked.site.container.kind == "none"
    check_jobs(plan, jobs, settings, installed_here=own and not asked.dry_run)
    for line in coreless(jobs, asked.site):
        say(line)
    if asked.site.container.kind == "none" and not asked.dry_run:
        check_programs(plan, jobs, settings)
    with _alone(files, asked.dry_run):
        done = done_jobs(plan, settings)
        here = {job.name for job in jobs if job.name not in done and _is_made_here(job, settings)}
        live = _live(files, slurm, say)
        decisions = decide(jobs, chosen, done | here, live)
        check_frozen(settings, files, [f"{name} ({job.id})" for name, job in live.items()])
        scripts = _write_scripts(decisions, files, asked)
        said = _tested(scripts, slurm, asked.dry_run, say)
        if asked.dry_run:
            return [_would(decision, said, here) for decision in decisions]
        if settings.cluster.prepare == "here":
            prepare_here(plan, settings, chosen - done, say)
            check_jobs(plan, jobs, settings, installed_here=own)  # now that the base is here
        freeze(settings, files)
        files.cancelled.unlink(missing_ok=True)
        return list(_submitted(decisions, scripts, files, slurm, live, say))


@contextmanager
def _alone(files: RunFiles, dry_run: bool) -> Iterator[None]:
    """Two people, or two terminals, must not submit one run at once."""
    if dry_run:
        yield
        return
    with locked(files.folder / ".lock", f"another `submit` of {files.run} is at work"):
        yield


def _live(files: RunFiles, slurm: Slurm, say: Callable[[str], None]) -> dict[str, Live]:
    """The run's jobs that Slurm has not ended, by name; empty where there is no Slurm.

    Those that are just ending are waited for: who depended on them would end with them. Raises
    StageError where one takes too long.
    """
    if slurm.absent is not None:
        return {}
    told: set[int] = set()
    for _ in range(ENDING_LOOKS):
        found = dict(live_jobs(files, slurm))
        ending = {name: job for name, job in found.items() if job.state == "COMPLETING"}
        if not ending:
            return {name: Live(job.id, job.state != "PENDING") for name, job in found.items()}
        for name, job in ending.items():
            if job.id not in told:
                say(f"{name}: job {job.id} is ending; waiting for that")
                told.add(job.id)
        time.sleep(ENDING_SECONDS)
    numbers = ", ".join(f"{name} (job {job.id})" for name, job in ending.items())
    raise StageError(
        f"{numbers} has been ending for {ENDING_LOOKS * ENDING_SECONDS:.0f} s: submit again when "
        "it has gone"
    )


def _write_scripts(decisions: Sequence[Decision], files: RunFiles, asked: Asked) -> dict[str, Path]:
    """The scripts of the jobs to submit, by name."""
    settings, written = asked.settings, {}
    for job in (decision.job for decision in decisions if decision.what == "submit"):
        text = render(
            job,
            files,
            settings,
            asked.site,
            name=slurm_prefix(files.run) + job.name,
        )
        path = files.script(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, text)
        files.log(job).parent.mkdir(parents=True, exist_ok=True)
        written[job.name] = path
    return written


def _tested(
    scripts: Mapping[str, Path], slurm: Slurm, dry_run: bool, say: Callable[[str], None]
) -> dict[str, str]:
    """What Slurm says to each script; what it refuses is raised before anything is queued."""
    if slurm.absent is not None:
        if not dry_run:
            raise SettingsError(f"{slurm.absent}; submit from a host of the cluster, or --dry-run")
        say(f"{slurm.absent}: scripts are written, and not tested")
        return {}
    return {name: _answer(path, slurm, dry_run, say) for name, path in scripts.items()}


def _answer(script: Path, slurm: Slurm, dry_run: bool, say: Callable[[str], None]) -> str:
    """A refusal may mean that nodes are out now, or that there are no such nodes."""
    try:
        return slurm.test(script)
    except SettingsError as refusal:
        if dry_run:
            hint = "Where nodes are drained or down just now, Slurm may take it all the same"
            raise SettingsError(f"{refusal}. {hint}") from None
        slurm.probe(script)
        doubt = f"{script.stem} cannot begin as things are now, but Slurm takes it: {refusal}"
        say(doubt)
        return doubt


def _is_made_here(job: Job, settings: Settings) -> bool:
    return settings.cluster.prepare == "here" and job.stage in PREPARED


def _would(decision: Decision, said: Mapping[str, str], here: Collection[str]) -> Submitted:
    state = {"submit": "to submit"}.get(decision.what, decision.what)
    state = "made here" if decision.job.name in here else state
    return Submitted(
        decision.job, state, decision.id, decision.waits_for, said.get(decision.job.name, "")
    )


def _submitted(
    decisions: Sequence[Decision],
    scripts: Mapping[str, Path],
    files: RunFiles,
    slurm: Slurm,
    live: Mapping[str, Live],
    say: Callable[[str], None],
) -> Iterator[Submitted]:
    ids = {name: job.id for name, job in live.items()}
    for decision in decisions:
        name = decision.job.name
        if decision.what != "submit":
            yield Submitted(decision.job, decision.what, decision.id, ())
            continue
        if decision.replaces is not None:
            slurm.cancel([decision.replaces])
        parents = [ids[parent] for parent in decision.waits_for]
        ids[name] = slurm.submit(scripts[name], parents)
        add_submission(files, name, Submission(ids[name], time.time()))
        say(f"{name}: job {ids[name]}")
        yield Submitted(decision.job, "submitted", ids[name], decision.waits_for)
