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
    if transform == "qkv":
        return _interleave_groups(sources, architecture)
    if transform == "gate_up":
        return torch.cat(tuple(sources))
    (source,) = sources
    if transform == "vocab" and rows > source.shape[0]:
        return torch.cat([source, source.new_zeros(rows - source.shape[0], source.shape[1])])
    return source


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
