"""All that a training carries from step to step, and how it is saved and restored exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from megatron.core.tensor_parallel import get_cuda_rng_tracker

from megatron_vr.models.te_modules import (
    keeps_scales,
    on_host,
    own_extra_state,
    quantised,
    with_extra_state,
    without_extra_state,
)
from megatron_vr.training.main_weights import replaced_in, rounded_main_weights
from megatron_vr.training.optimizer import sharded_optimizers

PARAMETER_STATE = "param_state"
SHARDING = "fully_reshardable"


@dataclass(frozen=True)
class TrainingState:
    """`models` are this rank's bare stages (not wrapped for data parallelism)."""

    models: Sequence[Any]
    optimizer: MegatronOptimizer
    schedule: OptimizerParamScheduler

    def sharded(self, *, loading: bool = False, random: bool = True) -> dict[str, Any]:
        """Megatron's description of this rank's part of the state, to save or to load into."""
        metadata = {
            "distrib_optim_sharding_type": SHARDING,
            "chained_optim_avoid_prefix": True,
            "singleton_local_shards": False,
            "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        }
        parameters = self._sharded_models(metadata)
        for inner in sharded_optimizers(self.optimizer):
            _allocate_moments(inner)
        with _padding_counted(self.optimizer):
            optimizer = self.optimizer.sharded_state_dict(
                parameters, is_loading=loading, metadata=metadata
            )
        # The optimizer's state above is named after the parameters themselves.
        with self._plain(loading):
            parameters = self._sharded_models(metadata, loading=loading)
        content: dict[str, Any] = {
            **parameters,
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
        }
        if random:
            content["random"] = _sharded_random_state()
        return content

    def _sharded_models(self, metadata: dict[str, Any], *, loading: bool = False) -> dict[str, Any]:
        found = {}
        for key, model in zip(_model_keys(self.models), self.models, strict=True):
            found[key] = model.sharded_state_dict(metadata=metadata)
            if loading and not keeps_scales(model.config):
                # Plain layers and Transformer Engine's go on with each other's checkpoints.
                found[key] = without_extra_state(found[key])
        return found

    def _plain(self, loading: bool) -> AbstractContextManager[None]:
        """Inside, no parameter is in FP8, so that checkpoints are as without it."""
        if loading:
            return replaced_in(self.models, on_host)
        return rounded_main_weights(self.models, self.optimizer, "cpu")

    def restore(self, content: dict[str, Any]) -> None:
        """Set this rank's state to the loaded `content` of `sharded(loading=True)`.

        Raises ValueError where the optimizer's state in it is not that of the weights in it.
        """
        rounded: dict[torch.nn.Parameter, torch.Tensor] = {}
        for key, model in zip(_model_keys(self.models), self.models, strict=True):
            with own_extra_state():
                model.load_state_dict(with_extra_state(model, content[key]))
            names = {parameter: name for name, parameter in model.named_parameters()}
            rounded |= {p: content[key][names[p]] for _, _, p in quantised(model)}
        _quantise_again(rounded)
        optimizers = sharded_optimizers(self.optimizer)
        parts = [content["optimizer"]] if len(optimizers) == 1 else content["optimizer"]
        for inner, part in zip(optimizers, parts, strict=True):
            _check_main_weights(inner, part, rounded)
            _restore_optimizer(inner, part)
        self.schedule.load_state_dict(content["schedule"])
        if "random" in content:
            _restore_random_state(content["random"])


def _model_keys(models: Sequence[Any]) -> list[str]:
    """As Megatron calls them: `model`, or `model0`, `model1`, … for virtual stages."""
    return ["model"] if len(models) == 1 else [f"model{i}" for i in range(len(models))]


def _allocate_moments(optimizer: DistributedOptimizer) -> None:
    """Give torch's AdamW the state that its first update would make.

    Megatron asks an optimizer that it loads into, or saves, for its one `step`, which one lacks
    that is fresh or has skipped every update so far.
    """
    inner = optimizer.optimizer
    if isinstance(inner, torch.optim.AdamW) and not inner.state:
        for group in inner.param_groups:
            for parameter in group["params"]:
                inner.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


@contextmanager
def _padding_counted(optimizer: MegatronOptimizer) -> Iterator[None]:
    """Inside, Megatron gathers the state of whole gradient buffers, padding between buckets too.

    It gathers without that padding, but then cuts parameters out at their places in the padded
    buffer: all behind a padded bucket would be saved as parts of others. Parameters are saved in
    their own shapes, so how much padding there was does not matter to who loads them.
    """
    buffers = [buffer for inner in sharded_optimizers(optimizer) for buffer in inner.buffers]
    sizes = [(buffer, buffer.numel) for buffer in buffers]
    sizes += [(part, part.grad_data.numel()) for buffer in buffers for part in buffer.buckets]
    unpadded = [part.numel_unpadded for part, _ in sizes]
    try:
        for part, size in sizes:
            part.numel_unpadded = size
        yield
    finally:
        for (part, _), size in zip(sizes, unpadded, strict=True):
            part.numel_unpadded = size


@torch.no_grad()
def _quantise_again(rounded: dict[torch.nn.Parameter, torch.Tensor]) -> None:
    """Let each FP8 parameter tell its own largest value to the scales of the delayed recipe.

    They are saved of the first tensor-parallel rank, whose last value, not yet shared, is not the
    other ranks'; and they are set once more after the parameters.
    """
    for parameter, value in rounded.items():
        parameter.copy_(value.to(parameter.device))


def _check_main_weights(
    optimizer: DistributedOptimizer,
    part: dict[str, Any],
    rounded: dict[torch.nn.Parameter, torch.Tensor],
) -> None:
    """Raise ValueError unless the main weights in `part` are the restored model's weights, which
    are in `rounded` where the model has them in FP8 alone.

    They are not where the state was saved without `_padding_counted`.
    """
    weights = [weight for buffer in optimizer.buffers for weight in buffer.param_index_map]
    for index, parameter in enumerate(weights):
        weight = rounded.get(parameter, parameter)
        main = part[PARAMETER_STATE][index]["param"].to(weight.device).view_as(weight)
        # Zero is what a vocabulary is padded with here and was not where it was saved.
        compared = (main != 0) & ~main.isnan()
        if bool((compared & (main.to(weight.dtype) != weight)).any()):
            raise ValueError("its optimizer state was saved under the names of other weights")


def _restore_optimizer(optimizer: DistributedOptimizer, part: dict[str, Any]) -> None:
    """`optimizer.load_state_dict(part)`, made whole for torch's AdamW.

    Megatron takes the groups and `step` from one part of the state and the moments from another.
    While it copies the moments, a `step` in torch's state is looked up among them and not found;
    so it is set afterwards, and as a tensor of each parameter's own, since Megatron would share
    one among all of them and every update would count it up once per parameter.
    """
    inner = optimizer.optimizer
    if not isinstance(inner, torch.optim.AdamW):
        optimizer.load_state_dict(part)
        return
    rest = {key: value for key, value in part.items() if key != PARAMETER_STATE}
    optimizer.load_state_dict(rest)
    steps = {parameter: state.pop("step") for parameter, state in inner.state.items()}
    optimizer.load_parameter_state_from_fully_reshardable(part[PARAMETER_STATE])
    for parameter, step in steps.items():
        inner.state[parameter]["step"] = step.clone()


def _sharded_random_state() -> ShardedObject:
    """Each rank's random generators; training draws nothing, but spec modules may."""
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "device": torch.cuda.get_rng_state(),
        "tracker": get_cuda_rng_tracker().get_states(),
    }
    return ShardedObject("random", state, (dist.get_world_size(),), (dist.get_rank(),))


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["device"])
    get_cuda_rng_tracker().set_states(state["tracker"])
