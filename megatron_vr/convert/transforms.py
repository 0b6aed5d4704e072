"""The arithmetic between Hugging Face tensors and one whole (unsharded) Megatron parameter.

Pure functions on tensors. Every `to_megatron` has its inverse in `to_hf`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_vr.convert.families import Transform
from megatron_vr.models.architecture import Architecture


def to_megatron(
    transform: Transform, sources: Sequence[Tensor], architecture: Architecture, rows: int
) -> Tensor:
    """The parameter made of `sources`; `rows` is its first dimension (`vocab` pads with zeros)."""
    parts = row_parts(transform, sources, architecture, rows)
    return take_rows(parts, 0, sum(part.shape[0] for part in parts))


def row_parts(
    transform: Transform, sources: Sequence[Tensor], architecture: Architecture, rows: int
) -> list[Tensor]:
    """Tensors that, one below the other, are the parameter; `rows` as in `to_megatron`.

    Nothing is copied that need not be.
    """
    if transform == "qkv":
        return [_interleave_groups(sources, architecture)]
    missing = rows - sources[0].shape[0]
    if transform == "vocab" and missing:
        return [sources[0], sources[0].new_zeros(missing, *sources[0].shape[1:])]
    return list(sources)


def take_rows(parts: Sequence[Tensor], begin: int, size: int) -> Tensor:
    """`size` rows from `begin` of what `parts` are one below the other; a view within one part."""
    taken = []
    for part in parts:
        first, last = max(0, begin), min(part.shape[0], begin + size)
        if first < last:
            taken.append(part[first:last])
        begin -= part.shape[0]
    return taken[0] if len(taken) == 1 else torch.cat(taken)


def to_hf(transform: Transform, parameter: Tensor, architecture: Architecture) -> list[Tensor]:
    """The tensors that `parameter` was made of, in the order of the table."""
    if transform == "qkv":
        return _split_groups(parameter, architecture)
    if transform == "gate_up":
        return list(parameter.chunk(2))
    if transform == "vocab":
        return [parameter[: architecture.vocab_size]]
    return [parameter]


def _group_rows(architecture: Architecture) -> list[int]:
    """Rows of queries, keys and values in one query group."""
    queries = architecture.heads // architecture.kv_heads * architecture.head_dim
    return [queries, architecture.head_dim, architecture.head_dim]


def _interleave_groups(sources: Sequence[Tensor], architecture: Architecture) -> Tensor:
    """q, k, v [rows, ...] to one tensor of, for each query group, its queries, key and value."""
    rest = sources[0].shape[1:]
    grouped = [
        source.reshape(architecture.kv_heads, rows, *rest)
        for source, rows in zip(sources, _group_rows(architecture), strict=True)
    ]
    return torch.cat(grouped, dim=1).reshape(-1, *rest)


def _split_groups(parameter: Tensor, architecture: Architecture) -> list[Tensor]:
    rest = parameter.shape[1:]
    rows = _group_rows(architecture)
    grouped = parameter.reshape(architecture.kv_heads, sum(rows), *rest)
    return [part.reshape(-1, *rest) for part in grouped.split(rows, dim=1)]
