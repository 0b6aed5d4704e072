"""Seconds of one optimizer step, and of scoring, from the costs of layers. Pure.

A pipeline of p stages and v chunks on each takes m micro-batches in
m · (slowest stage) + (p − 1) / v · (one stage), forward and backward; the last stage also has the
head. (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.) Where stages differ, by layers that
are not in FP8, the others take the place of the p − 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import WIDTH, Costs, Micro
from megatron_vr.cluster.planner.parameters import (
    layer_matrix_parameters,
    matrix_parameters,
)
from megatron_vr.training.flops import ModelFlops

# Packs of a small batch are not quite full (docs/performance.md: 83 % to 99 %).
FULL = 0.95
OPTIMIZER_BYTES = (
    34  # read: main weight, both moments, gradient twice; written: the first three, bf16
)
GRADIENT_BYTES = 8  # of each parameter and micro-batch: added to its float32 buffer
ZERO_BYTES = 4


@dataclass(frozen=True)
class Lengths:
    """Of the sequences of a batch: mean tokens and targets of one, and Σ n² / Σ n of all."""

    tokens: float
    targets: float
    weighted: float

    @property
    def pairs(self) -> float:
        """Pairs of a query and a key in one sequence, on average."""
        return self.tokens * (self.weighted + 1) / 2

    @property
    def longest(self) -> float:
        """About the longest of a batch: three standard deviations above the mean."""
        return self.tokens * (1 + 3 * math.sqrt(max(0.0, self.weighted / self.tokens - 1)))


@dataclass(frozen=True)
class Batch:
    """A step's work: `sequences` in all, `count` like micro-batches for each data-parallel rank."""

    sequences: int
    lengths: Lengths
    count: int
    micro: Micro

    @staticmethod
    def of(case: Case, sequences: int, lengths: Lengths) -> Batch:
        """As `parallel.packing` spreads `sequences` over the ranks of `case`."""
        # No sequence is cut in two: the rank with the longest one is waited for.
        longest = min(lengths.longest, case.micro_batch_tokens)
        tokens = max(sequences * lengths.tokens / case.data, longest)
        count = max(1, math.ceil(tokens / (FULL * case.micro_batch_tokens)))
        if case.layout.virtual_pipeline:
            count += -count % case.layout.pipeline
        share = tokens / lengths.tokens / count
        # On average half of what packs are padded to a multiple of, behind the last sequence.
        padding = 0.0 if case.fp8 is None else case.layout.context * case.unit / 2
        micro = Micro(
            share * lengths.tokens + padding,
            share * lengths.pairs + padding * (lengths.tokens + padding / 2),
            share * lengths.targets,
        )
        return Batch(sequences, lengths, count, micro)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step and where they go; `tokens` of the whole batch, `operations` of the
    model (nothing that is computed twice counts twice), on `gpus` of `peak` operations a second."""

    compute: float
    exchange: float
    bubble: float
    optimizer: float
    lost: float
    tokens: float
    operations: float
    gpus: int
    peak: float

    @property
    def seconds(self) -> float:
        """Of the whole step."""
        return self.compute + self.exchange + self.bubble + self.optimizer + self.lost

    @property
    def tokens_per_gpu(self) -> float:
        """Tokens a second and GPU."""
        return self.tokens / self.seconds / self.gpus

    @property
    def tflops(self) -> float:
        """10¹² model operations a second and GPU."""
        return self.operations / self.seconds / self.gpus / 1e12

    @property
    def mfu(self) -> float:
        """Share of the peak of the model's dtype (bfloat16 also where products are in FP8)."""
        return self.tflops * 1e12 / self.peak


def training_step(costs: Costs, batch: Batch) -> StepTime:
    """The time of one update of `batch`."""
    case, layout = costs.case, costs.case.layout
    stages = _stages(costs, batch.micro)
    stages[-1] += costs.head(batch.micro, trains=True)
    compute = batch.count * max(stages)
    bubble = (sum(stages) - max(stages)) / (layout.virtual_pipeline or 1)
    between = batch.count * _between_stages(costs, batch.micro)
    data = _data_exchange(costs)
    optimizer = _optimizer(costs)
    busy = compute + bubble + between + data + optimizer
    return StepTime(
        compute=compute,
        exchange=between + data,
        bubble=bubble,
        optimizer=optimizer,
        lost=busy * costs.rates.lost,
        tokens=batch.sequences * batch.lengths.tokens,
        operations=batch.sequences * _operations(case, batch.lengths),
        gpus=case.processes,
        peak=costs.nodes.device.peak(case.dtype),
    )


def _stages(costs: Costs, micro: Micro) -> list[float]:
    """Seconds of a micro-batch in the layers of each pipeline rank, both ways."""
    case, layout = costs.case, costs.case.layout
    fp8 = costs.layer(micro).both
    bf16 = replace(costs, case=case.without_fp8).layer(micro).both
    gradients = costs.moved(GRADIENT_BYTES * parameters_per_rank(case))
    held = [case.held(rank) for rank in range(layout.pipeline)]
    return [fast * fp8 + others * bf16 + gradients for fast, others in held]


def scoring_step(costs: Costs, batch: Batch) -> StepTime:
    """The time of the log-probs of `batch`: the forward pass alone."""
    case, layout = costs.case, costs.case.layout
    layers = case.architecture.layers // layout.pipeline
    stage = layers * costs.layer(batch.micro).forward
    compute = batch.count * (stage + costs.head(batch.micro, trains=False))
    bubble = (layout.pipeline - 1) / (layout.virtual_pipeline or 1) * stage
    between = batch.count * _between_stages(costs, batch.micro) / 2
    return StepTime(
        compute=compute,
        exchange=between,
        bubble=bubble,
        optimizer=0.0,
        lost=(compute + bubble + between) * costs.rates.lost,
        tokens=batch.sequences * batch.lengths.tokens,
        operations=batch.sequences * _operations(case, batch.lengths) / 3,
        gpus=case.processes,
        peak=costs.nodes.device.peak(case.dtype),
    )


def parameters_per_rank(case: Case) -> float:
    """Weights of an average stage's rank, with its share of embedding and output layer."""
    layout = case.layout
    return matrix_parameters(case.architecture) / layout.tensor / layout.pipeline


def _operations(case: Case, lengths: Lengths) -> float:
    """Of one sequence in training, on average."""
    flops = ModelFlops.of(case.architecture)
    forward = lengths.tokens * flops.projections + lengths.pairs * flops.attention
    return 3 * (forward + lengths.targets * flops.head)


def _between_stages(costs: Costs, micro: Micro) -> float:
    """Exposed seconds of one micro-batch's way through a stage: an activation and a gradient."""
    case, layout = costs.case, costs.case.layout
    if layout.pipeline == 1:
        return 0.0
    size = micro.tokens / layout.context * case.architecture.hidden_size * WIDTH
    if layout.sequence_parallel:
        size /= layout.tensor
    # Stages are the outermost split: neighbours are a whole stage's ranks apart.
    apart = case.processes // layout.pipeline + 1
    one = costs.linked(size, apart)
    if layout.virtual_pipeline:
        return 2 * layout.virtual_pipeline * one * costs.rates.exposed_pipeline
    return 2 * one


def _data_exchange(costs: Costs) -> float:
    """Exposed seconds of summing float32 gradients and gathering weights, in bfloat16 or FP8."""
    case, layout = costs.case, costs.case.layout
    ranks = case.data * layout.context
    if ranks == 1:
        return 0.0
    width = 4 + (4 if case.dtype == "float32" else 2)
    moved = width * parameters_per_rank(case)
    if case.fp8_params:
        matrices = layer_matrix_parameters(case.architecture) * len(case.fp8_layers)
        moved -= matrices / layout.tensor / layout.pipeline
    size = moved * (ranks - 1) / ranks
    device, rates, span = costs.nodes.device, costs.rates, ranks * layout.tensor
    if span <= costs.nodes.per_node:
        seconds = costs.linked(size, span)
    else:
        # A ring enters and leaves a node once, over the adapters of all its ranks there.
        beside = max(1, costs.nodes.per_node // layout.tensor)
        network = beside * device.network_gbs * rates.network
        seconds = size / (min(device.nvlink_gbs * rates.nvlink, network) * 1e9)
    return seconds * (rates.exposed_data if case.overlap else 1.0)


def _optimizer(costs: Costs) -> float:
    case = costs.case
    held = parameters_per_rank(case)
    share = held / (case.data * case.layout.context)
    return costs.moved(OPTIMIZER_BYTES * share + ZERO_BYTES * held)
