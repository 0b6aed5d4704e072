"""Whether each job can do its stage with the processes that it will have, before any is queued."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from megatron_vr.algorithm.check_model import architecture_of, check_architecture
from megatron_vr.algorithm.context import model_folder
from megatron_vr.algorithm.plan import Node, Plan
from megatron_vr.cluster.job import Job
from megatron_vr.config.checks import check_settings
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.models.known import known_architecture, shipped_models


def check_jobs(
    plan: Plan, jobs: Sequence[Job], settings: Settings, *, installed_here: bool
) -> None:
    """Raise SettingsError, with a line for each conflict, where a job's processes do not fit the
    layout, the model or each other, or need what is not `installed_here`, where jobs run it."""
    nodes = {node.name: node for node in plan.nodes}
    architecture = _architecture(plan, settings)
    faults: dict[str, None] = {}
    for job in jobs:
        if job.kind != "ranks":
            continue
        try:
            _check(job, nodes[job.name], architecture, installed_here)
        except SettingsError as error:
            faults |= dict.fromkeys(str(error).splitlines())
    if faults:
        raise SettingsError("\n".join(faults))


def coreless(jobs: Sequence[Job], site: SiteSettings) -> Iterator[str]:
    """A warning for the stages whose jobs would share one core of each node among all ranks."""
    told = {
        job.stage: None
        for job in jobs
        if job.shape.gpus and job.shape.cpus is None and not site.exclusive
    }
    if told:
        yield (
            f"note: jobs of {', '.join(told)} ask for GPUs and for no cores (`cpus` of `cluster`); "
            "unless your Slurm gives cores with GPUs, each node's ranks share one"
        )


def check_programs(plan: Plan, jobs: Sequence[Job], settings: Settings) -> None:
    """Raise SettingsError where the Python of the servers that jobs start is not there.

    Servers start days after the first job; jobs see the files that this host sees.
    """
    nodes = {node.name: node for node in plan.nodes}
    for job in jobs:
        engine = (nodes[job.name].settings if job.name in nodes else settings).engine
        launch = engine.servers.launch
        if job.kind not in ("served", "benchmarks") or launch is None or launch.program is None:
            continue
        if not os.access(launch.program.expanduser(), os.X_OK):
            raise SettingsError(
                f"engine.servers.launch.program is {launch.program}, which {job.name} is to start "
                "its servers with, and which is no program here; install the servers there, or "
                "name the Python of their environment"
            )


def _check(job: Job, node: Node, architecture: Architecture | None, here: bool) -> None:
    world, asked = job.shape.nodes * job.shape.processes, node.settings.parallel.processes
    if asked not in ("auto", world):
        raise SettingsError(
            f"parallel.processes is {asked}, but jobs of {job.stage} have {job.shape.nodes} nodes "
            f"× {job.shape.processes} processes; set parallel.processes: auto"
        )
    on_gpu = job.shape.gpus > 0 if job.kind == "ranks" else None
    check_settings(
        node.settings, world, f"jobs of {job.stage}: ", on_gpu=on_gpu, installed_here=here
    )
    if architecture is not None:
        check_architecture(node.settings, architecture, world)


def _architecture(plan: Plan, settings: Settings) -> Architecture | None:
    """The base's: as it lies on the disk, else as its name on the hub tells; None where neither."""
    base = next(node for node in plan.nodes if node.stage == "base")
    if settings.model.random is None and base.folder.done:
        return read_architecture(model_folder(base))
    path = settings.model.path
    return known_architecture(path) if path in shipped_models() else architecture_of(settings)
