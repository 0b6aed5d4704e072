"""The plan of a run: its settings, its folder and a device, made into a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_vr.algorithm.check_model import architecture_of
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cluster.counting import count_questions
from megatron_vr.cluster.job import Job
from megatron_vr.cluster.jobs import make_jobs
from megatron_vr.cluster.planned_run import PlannedRun
from megatron_vr.cluster.planner.cases import Model
from megatron_vr.cluster.planner.disk import disk_of
from megatron_vr.cluster.planner.hardware import device_called
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.report import Report
from megatron_vr.cluster.planner.stage_times import World
from megatron_vr.cluster.so_far import look_back
from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.load import load_as, load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.known import known_architecture
from megatron_vr.parallel.layout import check_layout


@dataclass(frozen=True)
class Asked:
    """What `plan` is asked for."""

    config: Path
    overrides: Sequence[str] = ()
    device: str = "h100"
    nodes: int | None = None
    measured: Path | None = None
    assume: Sequence[str] = ()
    search: bool = False


def plan_run(asked: Asked) -> Report:
    """The plan of the run that `asked` names; nothing is written, fetched or started.

    Raises SettingsError for settings that cannot run, an unknown device or assumption, and data
    of unknown size; CheckpointError for a base of unknown shape.
    """
    settings = load_settings(asked.config, [*asked.overrides, *_nodes(asked.nodes)])
    stated = load_as(PlanAssumptions, asked.measured, asked.assume)
    device = device_called(asked.device)
    if stated.network_gbs is not None:
        device = replace(device, network_gbs=stated.network_gbs)
    architecture = _architecture(settings)
    plan = make_plan(settings, digests(settings))
    jobs = {job.name: job for job in make_jobs(plan, settings)}
    _check_gpus(jobs)
    so_far = look_back(plan.nodes, stated, frozenset(stated.model_fields_set))
    counts = count_questions(settings, stated)
    world = World(Model(settings, architecture), device, counts, so_far.assumed)
    run = PlannedRun(plan, jobs, world)
    fault = _layout_fault(run)
    if fault is not None and not asked.search:
        raise SettingsError(f"{fault} `plan --search` finds layouts for so many GPUs.")
    if fault is None:
        _check_rows(settings)
    fits = run.fits() if fault is None else []
    wanted = asked.search or not all(fit.fits for fit in fits)
    return Report(
        model=settings.model.path or "random weights",
        parameters=world.server(1, 1).parameters,
        device=device,
        fits=fits,
        estimates=run.estimates() if fault is None else [],
        disk=disk_of(plan.nodes, world),
        assumed=so_far.assumed,
        counts=counts,
        notes=so_far.notes,
        layouts=run.layouts() if wanted else None,
        layout_fault=fault,
    )


def _nodes(nodes: int | None) -> list[str]:
    return [] if nodes is None else [f"cluster.{kind}.nodes={nodes}" for kind in ("train", "score")]


def _architecture(settings: Settings) -> Architecture:
    return architecture_of(settings) or known_architecture(str(settings.model.path))


def _check_gpus(jobs: Mapping[str, Job]) -> None:
    for job in jobs.values():
        if job.kind == "ranks" and job.shape.gpus < 1:
            raise SettingsError(
                f"{job.name} asks for no GPUs, and a plan is made for GPUs; give their number, as "
                "in cluster.train.gpus=8 cluster.score.gpus=8 cluster.sample.gpus=8"
            )


def _layout_fault(run: PlannedRun) -> str | None:
    """What is wrong with the layout of the settings on the GPUs of some job."""
    for node in run.plan.nodes:
        job = run.job(node)
        if job.kind != "ranks":
            continue
        processes = job.shape.nodes * job.shape.processes
        try:
            check_layout(layout_of(node.settings), run.world.model.architecture, processes)
        except SettingsError as error:
            return f"{job.name}, on {job.shape.nodes} × {job.shape.processes} ranks: {error}"
    return None


def _check_rows(settings: Settings) -> None:
    """Raise SettingsError for what no run would begin with."""
    for name, row in arms(settings).items():
        processes = settings.cluster.train.nodes * (
            settings.cluster.train.processes or max(1, settings.cluster.train.gpus)
        )
        where = "" if name == MAIN_ARM else f"comparisons.{name}: "
        check_settings(row, processes, where, on_gpu=True, installed_here=False)
