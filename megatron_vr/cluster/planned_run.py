"""What each stage of a run needs: memory, time, and faster layouts of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from megatron_vr.algorithm.benchmarking.suite import chosen_benchmarks
from megatron_vr.algorithm.plan import Node, Plan
from megatron_vr.cluster.job import Job, Shape
from megatron_vr.cluster.jobs import BENCHMARKS
from megatron_vr.cluster.planner.host import host_of
from megatron_vr.cluster.planner.memory import (
    host_memory,
    largest_micro_batch,
    scoring_memory,
    training_memory,
)
from megatron_vr.cluster.planner.report import Fit
from megatron_vr.cluster.planner.search import Candidate, search
from megatron_vr.cluster.planner.stage_times import (
    TRAININGS,
    Estimate,
    Took,
    World,
    benchmarks_work,
    costs_of,
    estimate,
    work_of,
)
from megatron_vr.cluster.planner.work import training_of
from megatron_vr.errors import SettingsError


@dataclass(frozen=True)
class PlannedRun:
    """A run's nodes, their jobs by name, and what they are planned on."""

    plan: Plan
    jobs: Mapping[str, Job]
    world: World

    def job(self, node: Node) -> Job:
        """The job that `node` is."""
        return self.jobs[node.name]

    def first(self, stage: str) -> Node | None:
        """The first node of `stage`: those of other rows and iterations need as much."""
        return next((node for node in self.plan.nodes if node.stage == stage), None)

    def fits(self) -> list[Fit]:
        """Memory of each kind of training, and of scoring."""
        found = []
        for stage in (*TRAININGS, "score"):
            node = self.first(stage)
            if node is not None:
                found.append(_fit(node, self.job(node).shape, self.world))
        return found

    def estimates(self) -> list[Estimate]:
        """The time of every job, in running order."""
        found = []
        for node in self.plan.nodes:
            job = self.job(node)
            if node.folder.done:
                seconds = float(node.folder.summary()["seconds"])
                made = Took(seconds, "done; of the last time that it was started")
                found.append(
                    replace(
                        estimate(job.name, made, job.shape, job.stage, self.world),
                        seconds=seconds,
                        restarts=0,
                        fault=None,
                        done=True,
                    )
                )
            else:
                took = work_of(node, job.shape, self.world)
                found.append(estimate(job.name, took, job.shape, job.stage, self.world))
        if BENCHMARKS in self.jobs:
            found.append(self._benchmarks(self.jobs[BENCHMARKS]))
        return found

    def layouts(self) -> list[Candidate]:
        """Faster layouts for `train`, on as many GPUs."""
        node = self.first("train")
        if node is None:
            raise AssertionError("a run without the stage train")
        shape = self.job(node).shape
        work = training_of(node, self.world.counts, self.world.assumed)
        costs = costs_of(node, shape, self.world)
        limit = self.world.device.memory_bytes
        return search(costs.case, costs.nodes, work.settings.batch_size, work.lengths, limit)

    def _benchmarks(self, job: Job) -> Estimate:
        settings = self.world.model.settings
        chosen = chosen_benchmarks(settings.cluster.benchmarks)
        unknown = [one.name for one in chosen if one.questions is None]
        if unknown:
            raise SettingsError(
                f"the benchmark {unknown[0]} does not say how many `questions` it has; add that "
                "to its file"
            )
        questions = sum(one.questions or 0 for one in chosen)
        outputs = sum((one.questions or 0) * one.samples for one in chosen)
        took = benchmarks_work(questions, outputs, job.shape, self.world)
        return estimate(job.name, took, job.shape, job.stage, self.world)


def _fit(node: Node, shape: Shape, world: World) -> Fit:
    case, limit = costs_of(node, shape, world).case, world.device.memory_bytes
    if node.stage == "score":
        return Fit(node.stage, case, scoring_memory(case), limit, None, None)
    multiple = 2 * case.layout.context * case.layout.tensor
    largest = largest_micro_batch(case, limit, multiple=max(256, multiple))
    host = host_of(host_memory(case, shape.processes), shape)
    return Fit(node.stage, case, training_memory(case), limit, largest, host)
