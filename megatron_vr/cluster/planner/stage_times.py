"""Seconds of each stage of a run, each with what they rest on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.algorithm.plan import SAMPLING_STAGES, Node
from megatron_vr.cluster.job import Shape
from megatron_vr.cluster.planner.cases import Model, scoring_case, training_case
from megatron_vr.cluster.planner.compute import Costs, Nodes
from megatron_vr.cluster.planner.hardware import Device
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.limits import restarts, slurm_seconds
from megatron_vr.cluster.planner.sampling import Asked, Server, sampling_seconds
from megatron_vr.cluster.planner.steps import Batch, StepTime, scoring_step, training_step
from megatron_vr.cluster.planner.work import (
    Counts,
    benchmarks_of,
    sampling_of,
    scoring_of,
    train_settings,
    training_of,
)
from megatron_vr.config.settings import Settings

TRAININGS = ("sft", "posterior", "train")
# Of stages that read and write tables; they are short beside the others.
SMALL_SECONDS = 60.0
# Bytes of a weight's part in a checkpoint, beside the weight: main weight and two moments.
STATE_BYTES = 12


@dataclass(frozen=True)
class World:
    """What a run is planned on and what is assumed of it."""

    model: Model
    device: Device
    counts: Counts
    assumed: PlanAssumptions

    @property
    def width(self) -> int:
        """Bytes of a weight."""
        return {"bfloat16": 2, "float32": 4}[self.model.settings.model.dtype]

    @property
    def weights_gb(self) -> float:
        """10⁹ bytes of the model's weights."""
        return self.server(1, 1).parameters * self.width / 1e9

    def server(self, gpus: int, concurrency: int) -> Server:
        """One copy of the model that samples."""
        return Server(self.model.architecture, self.device, gpus, concurrency, self.width)


@dataclass(frozen=True)
class Took:
    """`seconds` of work and the `basis` they were computed on; `fault`: why it cannot be done."""

    seconds: float
    basis: str
    step: StepTime | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A job: its work, starts included, on its GPUs, and how often its limit restarts it."""

    name: str
    stage: str
    shape: Shape
    seconds: float
    restarts: int | None
    basis: str
    done: bool
    step: StepTime | None
    fault: str | None

    @property
    def gpu_hours(self) -> float:
        """Hours times GPUs."""
        return self.seconds / 3600 * self.shape.nodes * self.shape.gpus


def estimate(name: str, took: Took, shape: Shape, stage: str, world: World) -> Estimate:
    """The estimate of job `name`, whose work is `took`."""
    start = world.assumed.start_seconds if shape.gpus else 0.0
    cluster = world.model.settings.cluster
    limit = slurm_seconds(shape.time)
    again = restarts(took.seconds, start, limit, cluster.save_seconds)
    fault = took.fault
    if fault is None and (again is None or again > cluster.restarts):
        fault = (
            f"needs {'ever more' if again is None else again} restarts at its limit of "
            f"{shape.time}, cluster.restarts is {cluster.restarts}; give it more time or nodes"
        )
    seconds = took.seconds + start * (1 + (again or 0))
    return Estimate(name, stage, shape, seconds, again, took.basis, False, took.step, fault)


def work_of(node: Node, shape: Shape, world: World) -> Took:
    """The work of the stage `node` in a job of `shape`."""
    if node.stage in TRAININGS:
        return _training(node, shape, world)
    if node.stage == "score":
        return _scoring(node, shape, world)
    if node.stage in SAMPLING_STAGES:
        return sampled(sampling_of(node, world.counts, world.assumed), node.settings, shape, world)
    return _small(node, world)


def benchmarks_work(questions: int, outputs: int, shape: Shape, world: World) -> Took:
    """The work of asking `questions` of benchmarks for `outputs` outputs in all."""
    asked = benchmarks_of(world.model.settings, outputs, world.assumed)
    took = sampled(asked, world.model.settings, shape, world)
    return Took(took.seconds, f"{questions:,} questions, {took.basis}", fault=took.fault)


def costs_of(node: Node, shape: Shape, world: World) -> Costs:
    """What the training or scoring `node` costs in a job of `shape`."""
    processes = shape.nodes * shape.processes
    model = Model(node.settings, world.model.architecture)
    if node.stage == "score":
        case = scoring_case(model, processes)
    else:
        case = training_case(model, processes, train_settings(node).micro_batch_tokens)
    return Costs(case, Nodes(world.device, max(1, shape.gpus)))


def _training(node: Node, shape: Shape, world: World) -> Took:
    work = training_of(node, world.counts, world.assumed)
    costs = costs_of(node, shape, world)
    batch = Batch.of(costs.case, work.settings.batch_size, work.lengths)
    step = training_step(costs, batch)
    measured = world.assumed.train_tflops_per_gpu
    each = step.seconds
    if measured is not None:
        each = step.operations / (measured * 1e12 * step.gpus)
    saves = checkpoint_gb(world) / world.assumed.disk_gbs
    told = f"{work.steps:,} steps of {each:,.3g} s" + (" (measured)" if measured else "")
    basis = f"{told}, {work.examples:,} examples of {work.lengths.tokens:,.0f} tokens"
    return Took(work.steps * each + saves, basis, step)


def _scoring(node: Node, shape: Shape, world: World) -> Took:
    work = scoring_of(node, world.counts, world.assumed)
    costs = costs_of(node, shape, world)
    step = scoring_step(costs, Batch.of(costs.case, max(1, work.count), work.lengths))
    each = step.seconds
    measured = world.assumed.score_tflops_per_gpu
    if measured is not None:
        each = step.operations / (measured * 1e12 * step.gpus)
    basis = f"{work.count:,} traces of {work.lengths.tokens:,.0f} tokens, under two models"
    return Took(2 * each, basis + (" (measured)" if measured else ""), step)


def sampled(asked: Asked, settings: Settings, shape: Shape, world: World) -> Took:
    """The work of sampling `asked` by the servers that `settings` start in a job of `shape`."""
    server, servers, told = _servers(settings, shape, world)
    basis = f"{asked.count:,} outputs of {asked.tokens:,.0f} tokens"
    measured = world.assumed.sample_tokens_per_second_per_gpu
    if measured is not None:
        seconds = asked.count * asked.tokens / (measured * servers * server.gpus)
        return Took(seconds, f"{basis} (measured speed)")
    if server.running(asked.prompt + asked.longest) < 1:
        fault = (
            f"the weights leave no room for one sequence of {asked.prompt + asked.longest:,.0f} "
            f"tokens on {server.gpus} GPUs; raise engine.servers.launch.gpus"
        )
        return Took(0.0, basis, fault=fault)
    seconds = sampling_seconds(server, servers, asked)
    if settings.engine.kind == "embedded":
        seconds *= world.assumed.embedded_slower
    running = min(server.running(asked.context), asked.count / servers)
    rate = asked.count * asked.tokens / seconds / (servers * server.gpus)
    return Took(
        seconds, f"{basis}; {told}, {running:,.0f} at once in each, {rate:,.0f} tokens/s and GPU"
    )


def _servers(settings: Settings, shape: Shape, world: World) -> tuple[Server, int, str]:
    engine = settings.engine
    launch = engine.servers.launch
    if engine.kind == "embedded":
        count = max(1, shape.nodes * shape.gpus)
        return world.server(1, engine.batch_size), count, f"{count} processes (embedded: guessed)"
    if launch is None:
        count = max(1, len(engine.servers.urls))
        told = f"{count} servers elsewhere, of one GPU as far as is known"
        return world.server(1, engine.servers.concurrency), count, told
    count = shape.nodes * launch.replicas * launch.data_parallel
    server = world.server(max(1, launch.gpus), engine.servers.concurrency)
    return server, count, f"{count} servers of {server.gpus} GPUs"


def _small(node: Node, world: World) -> Took:
    if node.stage == "export":
        seconds = world.weights_gb / world.assumed.export_gbs
        return Took(seconds, f"{world.weights_gb:,.1f} GB")
    if node.stage == "base" and node.settings.model.path is not None:
        seconds = world.weights_gb / world.assumed.download_gbs
        return Took(seconds, f"{world.weights_gb:,.1f} GB from the hub; nothing from a folder")
    return Took(SMALL_SECONDS, "assumed")


def checkpoint_gb(world: World) -> float:
    """10⁹ bytes of one checkpoint: weights, main weights and moments."""
    return world.weights_gb * (world.width + STATE_BYTES) / world.width
