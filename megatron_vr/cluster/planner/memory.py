"""How much memory the fullest rank takes: a model of this package's training, in bytes. Pure.

What it rests on, and how far it is from real allocations, is told in docs/planner.md. It was
checked on CPUs, with the spec `plain`; for `te` it is a count after the sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from megatron_vr.cluster.planner.assumptions import NONE, ON_GPU, ROTARY_TABLES, Overheads
from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.head import scoring_head, training_head
from megatron_vr.cluster.planner.in_flight import in_flight
from megatron_vr.cluster.planner.layer import LayerMemory
from megatron_vr.cluster.planner.parameters import layers_of_rank
from megatron_vr.cluster.planner.plain_layer import norm_kept, plain_layer
from megatron_vr.cluster.planner.saving import gathered_on_device, gathered_on_host
from megatron_vr.cluster.planner.sharding import Buffers, buffers_of
from megatron_vr.cluster.planner.te_layer import te_layer
from megatron_vr.cluster.planner.widths import Widths

Moment = Literal["head", "backward", "save", "forward"]

_FLOAT32, _INTEGER = 4, 8

# A random state that every recomputation keeps (torch's generator of the CPU).
_RANDOM_STATE = 5056


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at its fullest `moment`.

    `weights` with FP8's copies of them; `gradients` in their buffer; `optimizer` its main weights
    and moments; `activations` what the forward passes keep and a layer's backward pass adds;
    `head` the log-probs'; `buffers` everything else: CUDA, NCCL, workspaces, tables, room that the
    allocator cannot use, and what a save gathers.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    buffers: int
    moment: Moment

    @property
    def total(self) -> int:
        """All of it."""
        states = self.weights + self.gradients + self.optimizer
        return states + self.activations + self.head + self.buffers


def training_memory(case: Case) -> Memory:
    """Of a training's fullest pipeline rank; its step has as many micro-batches as can be alive."""
    ranks = range(case.layout.pipeline)
    return max((m for rank in ranks for m in moments(case, rank)), key=lambda m: m.total)


def scoring_memory(case: Case) -> Memory:
    """Of the log-prob pass, its models without optimizer and gradients, on the fullest rank."""
    layer, head = layer_memory(case), scoring_head(case)
    last = case.layout.pipeline - 1
    found = []
    for rank in range(case.layout.pipeline):
        weights = _weights(case, _buffers(case, rank), padded=False)
        fixed = _fixed(case, _overheads(case))
        for moment, activations, own in _scoring_moments(rank == last, layer, head):
            unused = int((activations + own) * _overheads(case).fragmented)
            found.append(Memory(weights, 0, 0, activations, own, fixed + unused, moment))
    return max(found, key=lambda memory: memory.total)


def _scoring_moments(
    last: bool, layer: LayerMemory, head: int
) -> Iterator[tuple[Moment, int, int]]:
    yield "forward", layer.forward, 0
    if last:
        yield "head", 0, head


def moments(case: Case, rank: int) -> tuple[Memory, ...]:
    """The moments of a training at which pipeline rank `rank` may be fullest."""
    buffers = _buffers(case, rank)
    kept = kept_for_backward(case, rank)
    last = layers_of_rank(case.architecture, case.layout, rank)[-1]
    layer = layer_memory(case if last in case.fp8_layers else case.without_fp8)
    backward = _recomputed(case, layer) + layer.backward
    found = [_memory(case, buffers, "backward", kept + backward, 0)]
    if rank == case.layout.pipeline - 1:
        head = training_head(case)
        found = [
            _memory(case, buffers, "backward", kept + backward, head.backward),
            _memory(case, buffers, "head", kept, head.forward),
        ]
    save = gathered_on_device(buffers, case.data * case.layout.context)
    return (*found, _memory(case, buffers, "save", 0, 0, more=save))


def layer_memory(case: Case) -> LayerMemory:
    """One layer of `case`, by its spec."""
    return te_layer(case) if case.spec == "te" else plain_layer(case)


def kept_for_backward(case: Case, rank: int) -> int:
    """Bytes that the forward passes of pipeline rank `rank` keep, without the head's."""
    w, layout, passes = Widths.of(case), case.layout, in_flight(case.layout, rank)
    # A pass is of one chunk; where chunks differ, by layers that are not in FP8, of their mean.
    chunks = layout.virtual_pipeline or 1
    fast, others = case.held(rank)
    layers = (fast * _kept(case) if fast else 0) + (others * _kept(case.without_fp8))
    table = _FLOAT32 * w.head_dim * case.micro_batch_tokens if case.spec == "plain" else 0
    kept = passes * layers // chunks + _between_ranks(case, passes) + table
    if rank == layout.pipeline - 1:
        kept += norm_kept(w) if case.spec == "plain" else w.boundary + w.split * _FLOAT32
    return kept + _INTEGER * w.tokens


def _kept(case: Case) -> int:
    """Bytes that one layer's forward pass keeps."""
    if case.recompute == "full":
        return Widths.of(case).boundary + 3 * _RANDOM_STATE
    layer = layer_memory(case)
    return layer.kept if case.recompute == "none" else layer.kept_selective


def _between_ranks(case: Case, passes: int) -> int:
    """Hidden states that were sent are kept by the sender too, and some and their gradients are on
    their way; interleaved schedules receive both ahead."""
    if case.layout.pipeline == 1:
        return 0
    ahead = 2 if case.layout.virtual_pipeline is None else 4
    return (passes + ahead) * Widths.of(case).boundary


def _recomputed(case: Case, layer: LayerMemory) -> int:
    """What one layer, computed again, holds besides its input."""
    if case.recompute == "full":
        return layer.kept - (Widths.of(case).boundary if case.spec == "te" else 0)
    return layer.kept - layer.kept_selective if case.recompute == "selective" else 0


def _memory(
    case: Case, buffers: Buffers, moment: Moment, activations: int, head: int, more: int = 0
) -> Memory:
    overheads = _overheads(case)
    item = Widths.of(case).item
    # In float32 the weights are their own main weights.
    states = 2 if item == _FLOAT32 else 3
    unused = int((activations + head + more) * overheads.fragmented)
    return Memory(
        weights=_weights(case, buffers, padded=True),
        gradients=buffers.buffer * _FLOAT32,
        optimizer=buffers.shard * _FLOAT32 * states,
        activations=activations,
        head=head,
        buffers=_fixed(case, overheads) + unused + more,
        moment=moment,
    )


def _buffers(case: Case, rank: int) -> Buffers:
    return buffers_of(
        *(case.architecture, case.layout, case.data, rank, case.overlap),
        fp8_layers=case.fp8_layers,
        fp8_params=case.fp8_params,
    )


def _weights(case: Case, buffers: Buffers, *, padded: bool) -> int:
    """For products in FP8 the layers' matrices are there twice more, as they are and transposed;
    or, with parameters in FP8, in no other form than these two."""
    numbers = buffers.buffer if padded else buffers.parameters
    copies = buffers.matrices if case.fp8_params else 2 * buffers.matrices
    return (numbers - buffers.in_fp8) * Widths.of(case).item + buffers.in_fp8 + copies


def _overheads(case: Case) -> Overheads:
    return ON_GPU if case.spec == "te" else NONE


def _fixed(case: Case, overheads: Overheads) -> int:
    """What is there whatever is computed."""
    if case.spec == "plain":
        return 0
    layout = case.layout
    sizes = (layout.tensor, layout.pipeline, layout.context, case.data, case.data * layout.context)
    groups = len([size for size in sizes if size > 1])
    tables = ROTARY_TABLES * _FLOAT32 * case.architecture.head_dim * case.micro_batch_tokens
    return overheads.context + overheads.workspace + groups * overheads.communicator + tables


def largest_micro_batch(
    case: Case, limit_bytes: int, *, multiple: int = 256, most: int = 2**20
) -> int | None:
    """The largest `micro_batch_tokens`, a multiple of `multiple` up to `most`, whose training fits
    into `limit_bytes` of each GPU; None where not even the smallest does."""

    def fits(count: int) -> bool:
        sized = replace(case, micro_batch_tokens=count * multiple)
        return training_memory(sized).total <= limit_bytes

    if not fits(1):
        return None
    # `low` fits and `high` does not, or is more than is asked for.
    low, high = 1, most // multiple + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * multiple


def host_memory(case: Case, per_node: int) -> int:
    """Bytes on a node of `per_node` ranks while they save a checkpoint, without the processes'
    own. Every rank holds the optimizer's states of all ranks that share its part of the model."""
    shared = case.data * case.layout.context
    item = Widths.of(case).item
    ranks = range(case.layout.pipeline)
    return per_node * max(gathered_on_host(_buffers(case, r), shared, item) for r in ranks)
