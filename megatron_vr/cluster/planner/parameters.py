"""The parameters of each rank, one by one, as Megatron lays them out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout


def matrix_parameters(a: Architecture) -> int:
    """Numbers of the whole model's matrix products and of its embedding: without norms, biases,
    routers and padding, which speeds hardly depend on."""
    tables = a.vocab_size * a.hidden_size * (1 if a.tied else 2)
    return a.layers * layer_matrix_parameters(a) + tables


def layer_matrix_parameters(a: Architecture) -> int:
    """Numbers of one layer's matrix products."""
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = a.hidden_size * (2 * queries + 2 * keys)
    if a.experts is None:
        return layer + 3 * a.hidden_size * a.ffn_hidden_size
    return layer + 3 * a.hidden_size * a.experts.ffn_hidden_size * a.experts.count


@dataclass(frozen=True)
class Parameter:
    """`count` numbers on each tensor rank.

    `matrix`: the layer, counted from 0, whose matrix product this is a weight of; None for others.
    `shared`: an embedding that the first and the last pipeline stage both hold.
    """

    count: int
    matrix: int | None = None
    shared: bool = False


@dataclass(frozen=True)
class Stage:
    """Chunk `chunk` of the layers on pipeline rank `rank` (chunk 0 without virtual stages)."""

    rank: int
    chunk: int = 0


def stages_of(layout: Layout, rank: int) -> tuple[Stage, ...]:
    """What pipeline rank `rank` holds."""
    return tuple(Stage(rank, chunk) for chunk in range(layout.virtual_pipeline or 1))


def layers_of_stage(architecture: Architecture, layout: Layout) -> int:
    """Layers in each chunk (a checked layout divides evenly)."""
    return architecture.layers // (layout.pipeline * (layout.virtual_pipeline or 1))


def layers_of(architecture: Architecture, layout: Layout, stage: Stage) -> range:
    """The layers of `stage`, counted from 0 over the whole model."""
    each = layers_of_stage(architecture, layout)
    first = (stage.chunk * layout.pipeline + stage.rank) * each
    return range(first, first + each)


def layers_of_rank(architecture: Architecture, layout: Layout, rank: int) -> list[int]:
    """The layers of all stages of pipeline rank `rank`, the last one last."""
    stages = stages_of(layout, rank)
    return [layer for stage in stages for layer in layers_of(architecture, layout, stage)]


def is_first(stage: Stage) -> bool:
    """Whether the stage embeds tokens."""
    return stage.rank == 0 and stage.chunk == 0


def is_last(layout: Layout, stage: Stage) -> bool:
    """Whether the stage has the last norm and the output layer."""
    last_chunk = (layout.virtual_pipeline or 1) - 1
    return stage.rank == layout.pipeline - 1 and stage.chunk == last_chunk


def vocabulary_rows(architecture: Architecture, layout: Layout) -> int:
    """Rows of the (padded) embedding on each tensor rank."""
    return layout.padded_vocabulary(architecture.vocab_size) // layout.tensor


def stage_parameters(
    architecture: Architecture, layout: Layout, stage: Stage
) -> tuple[Parameter, ...]:
    """Parameters of `stage` on one tensor rank, in the order of the module's."""
    return tuple(_stage_parameters(architecture, layout, stage))


def _stage_parameters(
    architecture: Architecture, layout: Layout, stage: Stage
) -> Iterator[Parameter]:
    hidden = architecture.hidden_size
    table = vocabulary_rows(architecture, layout) * hidden
    first, last = is_first(stage), is_last(layout, stage)
    shared = architecture.tied and layout.pipeline > 1
    if first:
        yield Parameter(table, shared=shared)
    for layer in layers_of(architecture, layout, stage):
        yield from _layer(architecture, layout.tensor, layer)
    if not last:
        return
    yield Parameter(hidden)
    if not (architecture.tied and first):
        yield Parameter(table, shared=shared)


def _layer(architecture: Architecture, tensor: int, layer: int) -> Iterator[Parameter]:
    a, hidden = architecture, architecture.hidden_size
    queries = a.heads * a.head_dim // tensor
    mixed = queries + 2 * a.kv_heads * a.head_dim // tensor
    yield Parameter(hidden)
    yield Parameter(queries * hidden, layer)
    yield Parameter(mixed * hidden, layer)
    if a.qkv_bias:
        yield Parameter(mixed)
    if a.qk_norm:
        yield Parameter(a.head_dim)
        yield Parameter(a.head_dim)
    yield Parameter(hidden)
    if a.experts is None:
        yield from _mlp(hidden, a.ffn_hidden_size // tensor, layer)
        return
    yield Parameter(a.experts.count * hidden)
    for _ in range(a.experts.count):
        yield from _mlp(hidden, a.experts.ffn_hidden_size // tensor, layer)


def _mlp(hidden: int, units: int, layer: int) -> Iterator[Parameter]:
    yield Parameter(2 * units * hidden, layer)
    yield Parameter(units * hidden, layer)
