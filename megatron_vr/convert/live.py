"""The Hugging Face tensors of a model as it is in memory, split over any layout of ranks.

What a rollout server is brought up to date with. The table is that of the converters; which rank
has which part of a parameter is what Megatron says in its sharded state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, is_main_replica
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from megatron_vr.convert.families import Weight
from megatron_vr.convert.load import place_of, sharded_tensors
from megatron_vr.convert.maps import Index, parameters, source_shapes
from megatron_vr.convert.transforms import to_hf
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture


@dataclass(frozen=True, order=True)
class _Part:
    """The block of a parameter at `offsets` that `rank` has; `whole` is the parameter's shape."""

    name: str
    index: Index
    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    whole: tuple[int, ...]
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The part's precision."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


@torch.no_grad()
def live_tensors(
    models: Sequence[MegatronModule], architecture: Architecture
) -> Iterator[tuple[str, Tensor]]:
    """On rank 0 every (name, tensor) of the model, layers in order; on the others nothing.

    Every rank must exhaust the iterator: a parameter's parts travel when it is asked for, so that
    rank 0 holds no more than one. Tensors are in the parameters' precision and on their device.
    Raises CheckpointError where the ranks do not have every element of a parameter exactly once.
    """
    own = {}
    for model in models:
        for shard in sharded_tensors(model):
            if is_main_replica(shard.replica_id):
                own[_part(shard)] = shard.data
    gathered: list[list[_Part]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, list(own))
    parts: dict[tuple[str, Index], list[_Part]] = {}
    for part in sorted(part for of_rank in gathered for part in of_rank):
        parts.setdefault((part.name, part.index), []).append(part)
    device = next(models[0].parameters()).device
    for weight, index in parameters(architecture):
        wanted = parts.get((weight.megatron, index), [])
        whole = _collect(weight, index, wanted, own, device)
        if whole is not None:
            names = source_shapes(weight, index, architecture)
            yield from zip(names, to_hf(weight.transform, whole, architecture), strict=True)


def _part(shard: ShardedTensor) -> _Part:
    axes = shard.prepend_axis_num
    name, index = place_of(shard)
    return _Part(
        name,
        index,
        dist.get_rank(),
        tuple(shard.global_offset[axes:]),
        tuple(shard.local_shape),
        tuple(shard.global_shape[axes:]),
        str(shard.data.dtype).removeprefix("torch."),
    )


def _collect(
    weight: Weight,
    index: Index,
    parts: Sequence[_Part],
    own: dict[_Part, Tensor],
    device: torch.device,
) -> Tensor | None:
    """The whole parameter, on rank 0."""
    held = sum(torch.Size(part.sizes).numel() for part in parts)
    if not parts or held != torch.Size(parts[0].whole).numel():
        raise CheckpointError(
            f"the ranks hold {held} elements of {weight.megatron} {list(index)}, "
            f"not {torch.Size(parts[0].whole).numel() if parts else 'any'}."
        )
    if dist.get_rank() != 0:
        for part in parts:
            if part in own:
                dist.send(own[part].contiguous(), 0)
        return None
    dtype = parts[0].torch_dtype
    whole = torch.empty(parts[0].whole, dtype=dtype, device=device)
    for part in parts:
        place = whole
        for axis, (start, size) in enumerate(zip(part.offsets, part.sizes, strict=True)):
            place = place.narrow(axis, start, size)
        if part in own:
            place.copy_(own[part])
        else:
            received = torch.empty(part.sizes, dtype=dtype, device=device)
            dist.recv(received, part.rank)
            place.copy_(received)
    return whole
