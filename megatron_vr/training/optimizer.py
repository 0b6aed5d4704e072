"""AdamW sharded over the data-parallel ranks, and its learning rate over the steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
    get_standard_config_overrides,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import OptimizerSettings
from megatron_vr.errors import SettingsError
from megatron_vr.training.megatron_settings import optimizer_fields


def build_optimizer(
    models: Sequence[DistributedDataParallel],
    settings: OptimizerSettings,
    dtype: torch.dtype,
    fp8: Fp8Settings | None = None,
) -> MegatronOptimizer:
    """Megatron's distributed AdamW over the parameters (of type `dtype`) of this rank's `models`.

    Norms and biases are not decayed. Main parameters and moments are float32. Raises SettingsError
    on a CPU where Transformer Engine is installed.
    """
    if not torch.cuda.is_available() and find_spec("transformer_engine") is not None:
        raise SettingsError(
            "there is no GPU, but Transformer Engine is installed, whose AdamW Megatron-Core takes "
            "wherever it finds it, and which needs a GPU; train on one, or in an environment "
            "without Transformer Engine"
        )
    overlap = models[0].ddp_config.overlap_param_gather
    config = OptimizerConfig(**optimizer_fields(settings, dtype, overlap=overlap, fp8=fp8))
    optimizer = get_megatron_optimizer(
        config, list(models), config_overrides=get_standard_config_overrides(config)
    )
    for inner in torch_optimizers(optimizer):
        # One kernel for all parameters, where torch would loop over them on a CPU.
        for group in inner.param_groups:
            group["fused"], group["foreach"] = True, False
    return optimizer


def build_schedule(
    optimizer: MegatronOptimizer, settings: OptimizerSettings, steps: int
) -> OptimizerParamScheduler:
    """The learning rate of `steps` updates; `step(1)` before an update sets that update's rate.

    Update s = 1..steps: `s / warmup_steps` of the peak while s ≤ warmup_steps, the peak at the end
    of warm-up, then a cosine that reaches `final_fraction` of it at s = steps (or constant). Weight
    decay acts through it too, so it must be built before the first update.
    Raises SettingsError when warm-up would not end before the training does.
    """
    if settings.warmup_steps >= steps:
        raise SettingsError(
            f"optimizer.warmup_steps={settings.warmup_steps} must be fewer than the {steps} steps "
            "of the training; lower it or train longer"
        )
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.learning_rate,
        min_lr=settings.learning_rate * settings.final_fraction,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=steps,
        lr_decay_style=settings.schedule,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
    )


def clip_gradient(optimizer: MegatronOptimizer, largest: float) -> float:
    """Scale the summed gradients to a norm of at most `largest`; the norm they had, on every rank.

    To be followed by `step_with_clipped`, or by nothing where the norm is not finite.
    """
    (inner,) = sharded_optimizers(optimizer)
    inner.prepare_grads()
    return float(inner.clip_grad_norm(largest))


def step_with_clipped(optimizer: MegatronOptimizer) -> None:
    """Update the parameters, and gather them where nothing gathers them later."""
    (inner,) = sharded_optimizers(optimizer)
    inner.step_with_ready_grads()


def sharded_optimizers(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The distributed optimizers that `optimizer` chains (one for a dense model)."""
    return list(getattr(optimizer, "chained_optimizers", [optimizer]))


def torch_optimizers(optimizer: MegatronOptimizer) -> Iterator[torch.optim.AdamW]:
    """Torch's own AdamW where Megatron fell back to it, having neither TE's nor apex' Adam."""
    for sharded in sharded_optimizers(optimizer):
        if isinstance(sharded.optimizer, torch.optim.AdamW):
            yield sharded.optimizer


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """The learning rate of the next update (all groups share it)."""
    return float(optimizer.param_groups[0]["lr"])
