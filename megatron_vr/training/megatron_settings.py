"""What a training asks of Megatron's data parallelism and optimizer. Pure."""

from __future__ import annotations

from typing import Any

import torch

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import OptimizerSettings


def ddp_fields(*, overlap: bool, fp8: Fp8Settings | None) -> dict[str, Any]:
    """Fields of DistributedDataParallelConfig. Gradients are summed in float32."""
    fields = {
        "grad_reduce_in_fp32": True,
        "use_distributed_optimizer": True,
        "overlap_grad_reduce": overlap,
        "overlap_param_gather": overlap,
    }
    if fp8 is not None and fp8.params:
        fields["fp8_param_gather"] = True
    return fields


def optimizer_fields(
    settings: OptimizerSettings, dtype: torch.dtype, *, overlap: bool, fp8: Fp8Settings | None
) -> dict[str, Any]:
    """Fields of OptimizerConfig: AdamW whose main weights and moments are float32. There is no
    loss scale: bfloat16 has float32's range."""
    fields: dict[str, Any] = {
        "optimizer": "adam",
        "lr": settings.learning_rate,
        "min_lr": settings.learning_rate * settings.final_fraction,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.beta1,
        "adam_beta2": settings.beta2,
        "adam_eps": settings.epsilon,
        "clip_grad": settings.clip,
        "bf16": dtype == torch.bfloat16,
        "params_dtype": dtype,
        "use_distributed_optimizer": True,
        "overlap_param_gather": overlap,
    }
    if fp8 is not None:
        fields["fp8_recipe"] = fp8.recipe
    return fields
