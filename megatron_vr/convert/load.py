"""Fill a Megatron model from a Hugging Face folder, for any layout.

Megatron itself says, in its sharded state dict, which part of which whole parameter each rank
holds. The whole parameter is made from Hugging Face tensors by the table, and cut there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.transformer.module import MegatronModule
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from megatron_vr.convert.families import Weight
from megatron_vr.convert.hf_reader import HFWeights, check_tensors
from megatron_vr.convert.maps import Index, source_shapes, split_layer, weight_map
from megatron_vr.convert.transforms import to_megatron
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.te_modules import fillable, with_extra_state, without_extra_state

_UNREADABLE = (CheckpointException, CheckpointingException, KeyError, OSError, RuntimeError)


@torch.no_grad()
def load_hf(
    models: Sequence[MegatronModule], folder: str | Path, architecture: Architecture
) -> None:
    """Fill every parameter of this rank's `models` from `folder`, in the parameters' precision.

    `models` are the bare stages of `models.gpt.build_model`. Raises CheckpointError when the
    folder is not exactly this model, or when a parameter would not be filled exactly once.
    """
    weights = HFWeights(folder)
    check_tensors(weights, architecture)
    source = _WholeParameters(weights, architecture)
    for model in models:
        with fillable(model):
            tally = _Tally(model)
            for shard in sharded_tensors(model):
                shard.data.copy_(source.cut(shard))
                tally.filled(shard)
            tally.check()


@torch.no_grad()
def load_megatron(models: Sequence[MegatronModule], folder: str | Path) -> None:
    """Fill this rank's `models` from a torch_dist checkpoint of this model at any layout, through
    Megatron's own loader. Raises CheckpointError where that fails.

    Its layers may be plain or Transformer Engine's; scales of a training in FP8 are not taken up.
    """
    keys = ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]
    with ExitStack() as entered:
        for model in models:
            entered.enter_context(fillable(model))
        state = {
            key: without_extra_state(model.sharded_state_dict())
            for key, model in zip(keys, models, strict=True)
        }
        try:
            loaded = dist_checkpointing.load(state, str(folder))
        except _UNREADABLE as error:
            raise CheckpointError(f"{folder} cannot be loaded by Megatron ({error}).") from error
        for key, model in zip(keys, models, strict=True):
            model.load_state_dict(with_extra_state(model, loaded[key]))


def place_of(shard: ShardedTensor) -> tuple[str, Index]:
    """The row of the table, by its Megatron name, and the index that `shard` is a part of."""
    name, layer = split_layer(shard.key)
    return name, layer + tuple(shard.global_offset[: shard.prepend_axis_num])


def sharded_tensors(model: MegatronModule) -> Iterator[ShardedTensor]:
    """What Megatron says of this rank's part of each parameter."""
    state = model.sharded_state_dict()
    apply_factories(state)
    for value in nested_values(state):
        # What is no tensor is Transformer Engine's own state, which starts empty.
        if isinstance(value, ShardedTensor):
            yield value


class _WholeParameters:
    """Whole parameters of the model, made when first asked for; the last one is kept, since a
    fused parameter is asked for in parts."""

    def __init__(self, weights: HFWeights, architecture: Architecture) -> None:
        self._weights = weights
        self._architecture = architecture
        self._map = weight_map(architecture)
        self._last: tuple[tuple[str, Index, int], Tensor] | None = None

    def cut(self, shard: ShardedTensor) -> Tensor:
        """The part of the whole parameter that `shard` stands for."""
        name, index = place_of(shard)
        weight = self._map.get(name)
        if weight is None:
            raise CheckpointError(
                f"no {self._architecture.family} tensor is known for parameter {shard.key}."
            )
        axes = shard.prepend_axis_num
        whole = self._whole(weight, index, shard.global_shape[axes])
        if tuple(whole.shape) != tuple(shard.global_shape[axes:]):
            raise CheckpointError(
                f"parameter {shard.key} has shape {shard.global_shape[axes:]}, but its Hugging "
                f"Face tensors make {tuple(whole.shape)}."
            )
        for axis, (start, size) in enumerate(
            zip(shard.global_offset[axes:], shard.local_shape, strict=True)
        ):
            whole = whole.narrow(axis, start, size)
        return whole

    def _whole(self, weight: Weight, index: Index, rows: int) -> Tensor:
        wanted = (weight.megatron, index, rows)
        if self._last is None or self._last[0] != wanted:
            names = source_shapes(weight, index, self._architecture)
            tensors = [self._weights.tensor(name) for name in names]
            self._last = wanted, to_megatron(weight.transform, tensors, self._architecture, rows)
        return self._last[1]


class _Tally:
    """Which elements of a model's parameters were written, by the memory they live in."""

    def __init__(self, model: MegatronModule) -> None:
        self._names = {_memory(p): name for name, p in model.named_parameters()}
        self._missing = {_memory(p): p.numel() for p in model.parameters()}

    def filled(self, shard: ShardedTensor) -> None:
        memory = _memory(shard.data)
        if memory not in self._missing:
            raise CheckpointError(f"{shard.key} is no parameter of the model but a copy.")
        self._missing[memory] -= shard.data.numel()

    def check(self) -> None:
        for memory, missing in self._missing.items():
            if missing:
                verb = "was not filled" if missing > 0 else "was filled more than once"
                raise CheckpointError(
                    f"parameter {self._names[memory]} {verb} ({missing} elements left)."
                )


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
