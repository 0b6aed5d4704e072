"""The float32 weights that the optimizer updates, as the weights of a model.

Parameters that are kept in FP8 alone are not to be saved or released as they are: bfloat16 holds
more of the main weights than FP8 does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_vr.models.te_modules import replaced
from megatron_vr.training.optimizer import sharded_optimizers


@contextmanager
def rounded_main_weights(
    models: Sequence[Any], optimizer: MegatronOptimizer, device: str | None = None
) -> Iterator[None]:
    """Inside, parameters of the bare stages `models` that are kept in FP8 alone are their main
    weights, rounded to the parameters' precision, on `device` (the parameters' own by default).

    All ranks must enter it, since they have shares of the main weights.
    """
    (inner,) = sharded_optimizers(optimizer)
    with replaced_in(models, partial(_rounded, inner, device=device)):
        yield


@contextmanager
def replaced_in(
    models: Sequence[Any], value: Callable[[torch.nn.Parameter], torch.Tensor]
) -> Iterator[None]:
    """`te_modules.replaced` for several stages."""
    with ExitStack() as entered:
        for model in models:
            entered.enter_context(replaced(model, value))
        yield


def _rounded(
    optimizer: DistributedOptimizer, parameter: torch.nn.Parameter, device: str | None
) -> torch.Tensor:
    """The whole of `parameter` from the shares of the data-parallel ranks, which do not overlap."""
    whole = torch.zeros(parameter.numel(), dtype=parameter.dtype, device=parameter.device)
    if parameter in optimizer.model_param_gbuf_map:
        share = optimizer._get_model_param_range_map(parameter)["param"]
        whole[share.start : share.end].copy_(parameter.main_param)  # type: ignore[attr-defined]
    dist.all_reduce(whole, group=optimizer.data_parallel_group)
    return whole.view(parameter.shape).to(device or whole.device)
