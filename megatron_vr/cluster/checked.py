"""Whether each job can do its stage with the processes that it will have, before any is queued."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_vr.algorithm.check_model import architecture_of, check_architecture
from megatron_vr.algorithm.context import model_folder
from megatron_vr.algorithm.plan import Node, Plan
from megatron_vr.cluster.job import Job
from megatron_vr.cluster.jobs import node_name
from megatron_vr.config.checks import check_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.models.known import known_architecture, shipped_models


def check_jobs(
    plan: Plan, jobs: Sequence[Job], settings: Settings, *, installed_here: bool
) -> None:
    """Raise SettingsError, with a line for each conflict, where a job's processes do not fit the
    layout, the model or each other, or need what is not `installed_here`, where jobs run it."""
    nodes = {node_name(node, settings.run.folder): node for node in plan.nodes}
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


def _check(job: Job, node: Node, architecture: Architecture | None, here: bool) -> None:
    world, asked = job.shape.nodes * job.shape.processes, node.settings.parallel.processes
    if asked not in ("auto", world):
        raise SettingsError(
            f"parallel.processes is {asked}, but jobs of {job.stage} have {job.shape.nodes} nodes "
            f"× {job.shape.processes} processes; set parallel.processes: auto"
        )
    check_settings(node.settings, world, f"jobs of {job.stage}: ", installed_here=here)
    if architecture is not None:
        check_architecture(node.settings, architecture, world)


def _architecture(plan: Plan, settings: Settings) -> Architecture | None:
    """The base's: as it lies on the disk, else as its name on the hub tells; None where neither."""
    base = next(node for node in plan.nodes if node.stage == "base")
    if settings.model.random is None and base.folder.done:
        return read_architecture(model_folder(base))
    path = settings.model.path
    return known_architecture(path) if path in shipped_models() else architecture_of(settings)
