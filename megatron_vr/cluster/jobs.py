"""The jobs of a run: its plan, node by node, with the shapes that the settings give. Pure."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from megatron_vr.algorithm.context import model_folder
from megatron_vr.algorithm.plan import SAMPLING_STAGES, Node, Plan
from megatron_vr.cluster.job import Job, Kind, Shape
from megatron_vr.config.cluster_settings import ClusterSettings, JobSettings
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.problems.nearest import suggestion

BENCHMARKS: Final = "benchmarks"
RANK_STAGES = ("sft", "posterior", "train", "score")
STAGES = (
    *("problems", "base", "sft", "posterior", "sample", "score", "answer", "weigh", "train"),
    *("export", "evaluate", BENCHMARKS),
)
LABELS = (
    *("problems-train", "problems-validation", "problems-test", "export-policy"),
    *("export-posterior", "sample-policy", "sample-posterior"),
)


def make_jobs(plan: Plan, settings: Settings) -> tuple[Job, ...]:
    """A job for each node of `plan`, every one after its parents, and one for the benchmarks.

    Raises SettingsError for shapes that name no stage, or that do not hold what the stage starts.
    """
    _check_names(settings.cluster)
    jobs = [_job(node, settings) for node in plan.nodes]
    if settings.cluster.benchmarks:
        jobs.append(_benchmarks(plan, settings))
    return tuple(jobs)


def slurm_prefix(run: Path) -> str:
    """What the names of all jobs of the run in `run` begin with, in Slurm."""
    return f"vr-{hashlib.sha256(os.path.realpath(run).encode()).hexdigest()[:8]}:"


def _job(node: Node, settings: Settings) -> Job:
    kind = _kind(node)
    shape = _shape(node.stage, node.label, kind, settings.cluster)
    if kind == "served":
        _check_servers(node, shape)
    return Job(
        name=node.name,
        stage=node.stage,
        kind=kind,
        shape=shape,
        parents=tuple(dict.fromkeys(one.name for one in node.inputs.values())),
        model=model_folder(node.inputs["model"]).absolute() if kind == "served" else None,
    )


def _kind(node: Node) -> Kind:
    if node.is_served:
        # Without servers of its own it is the client of some that run elsewhere.
        return "served" if node.settings.engine.servers.launch is not None else "cpu"
    return "ranks" if node.stage in (*RANK_STAGES, *SAMPLING_STAGES) else "cpu"


def _shape(stage: str, label: str, kind: Kind, cluster: ClusterSettings) -> Shape:
    usual: JobSettings = cluster.cpu
    if kind != "cpu":
        kinds = {"score": cluster.score, "sft": cluster.train, "posterior": cluster.train}
        usual = kinds.get(stage, cluster.train if stage == "train" else cluster.sample)
    asked = usual.model_dump()
    for name in (stage, label):
        own = cluster.stages.get(name, JobSettings()).model_dump(exclude_defaults=True)
        asked |= own | {"flags": (*asked["flags"], *own.get("flags", ()))}
    if kind in ("cpu", BENCHMARKS):
        asked["nodes"] = 1
    asked["processes"] = asked["processes"] or max(1, asked["gpus"])
    return Shape(**asked)


def _benchmarks(plan: Plan, settings: Settings) -> Job:
    t = settings.run.iterations
    exports = plan.select("export", t, MAIN_ARM)
    policy = next(node for node in exports if node.label == "export-policy")
    return Job(
        name=BENCHMARKS,
        stage=BENCHMARKS,
        kind=BENCHMARKS,
        shape=_shape(BENCHMARKS, BENCHMARKS, BENCHMARKS, settings.cluster),
        parents=(policy.name,),
    )


def _check_names(cluster: ClusterSettings) -> None:
    known = (*STAGES, *LABELS)
    for name in cluster.stages:
        if name not in known:
            raise SettingsError(f"cluster.stages.{name} is no stage; {suggestion(name, known)}")


def _check_servers(node: Node, shape: Shape) -> None:
    launch = node.settings.engine.servers.launch
    if launch is None:
        return
    wanted = launch.replicas * launch.gpus * launch.data_parallel
    if wanted > shape.gpus:
        raise SettingsError(
            f"{node.label}: engine.servers.launch starts {launch.replicas} servers of "
            f"{launch.gpus} × {launch.data_parallel} GPUs on each node, {wanted} in all, but "
            f"cluster.sample.gpus is {shape.gpus}; start fewer replicas, or ask for more GPUs"
        )


def select(jobs: Sequence[Job], first: str | None, last: str | None) -> tuple[Job, ...]:
    """Those of `jobs` that depend on the stage `first` and on which the stage `last` depends, both
    included; None sets no bound. A stage is given by its name or by that of one job.

    Raises SettingsError for a name that is neither, and where nothing lies between the two.
    """
    chosen = {job.name for job in jobs}
    if first is not None:
        chosen &= _after(jobs, _named(jobs, "--from", first))
    if last is not None:
        chosen &= _before(jobs, _named(jobs, "--until", last))
    if not chosen:
        raise SettingsError(f"nothing of this run lies between --from {first} and --until {last}")
    return tuple(job for job in jobs if job.name in chosen)


def _named(jobs: Sequence[Job], option: str, name: str) -> set[str]:
    found = {job.name for job in jobs if name in (job.stage, job.name)}
    if not found:
        known = {word for job in jobs for word in (job.stage, job.name)}
        raise SettingsError(f"{option} {name} is no stage of this run; {suggestion(name, known)}")
    return found


def _after(jobs: Sequence[Job], found: set[str]) -> set[str]:
    for job in jobs:
        if found & set(job.parents):
            found = found | {job.name}
    return found


def _before(jobs: Sequence[Job], found: set[str]) -> set[str]:
    for job in reversed(jobs):
        if job.name in found:
            found = found | set(job.parents)
    return found
