"""Transformer Engine's modules in a model: what must be set on them, or kept from them.

They are known by the attributes they have; nothing here imports Transformer Engine.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

EXTRA_STATE = "_extra_state"
# Since 2.20 Transformer Engine reads its pickled state only where this is "1".
TRUST = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"


def te_linears(models: Iterable[torch.nn.Module]) -> Iterator[torch.nn.Module]:
    """Its matrix products in `models`: linear layers, with a norm before them or not."""
    for model in models:
        for module in model.modules():
            if hasattr(module, "fuse_wgrad_accumulation"):
                yield module


def fuse_weight_gradients(models: Iterable[torch.nn.Module]) -> int:
    """Let the products of weight gradients add to `main_grad` by themselves; how many do.

    Otherwise each product writes a bfloat16 gradient that DDP adds to the float32 sum: one more
    pass over memory, and a rounding for every micro-batch. Megatron's own setting for it
    (`gradient_accumulation_fusion`) is out of reach, since with it Megatron's own linear layers,
    of which the model has two that are never called, refuse to be made without apex. Transformer
    Engine reads the attribute at each forward pass. To be called once DDP has made `main_grad`,
    which must be zero before a step's first micro-batch. Raises ValueError before that.
    """
    count = 0
    for linear in te_linears(models):
        matrices = [weight for weight in linear.parameters(recurse=False) if weight.dim() > 1]
        if not all(hasattr(weight, "main_grad") for weight in matrices):
            raise ValueError("weight gradients can be fused in a model that DDP has wrapped only")
        linear.fuse_wgrad_accumulation = True  # type: ignore[assignment]
        count += 1
    return count


def quantised(model: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.nn.Parameter]]:
    """Of each parameter of `model` that is kept in FP8 alone its module, its name there, and it."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if hasattr(parameter, "quantize_"):
                yield module, name, parameter


@contextmanager
def replaced(
    model: torch.nn.Module, value: Callable[[torch.nn.Parameter], torch.Tensor]
) -> Iterator[None]:
    """Inside, `value` of each parameter that is kept in FP8 alone stands in its place, so that
    `model` and its (sharded) state are as without FP8."""
    originals = list(quantised(model))
    try:
        for module, name, parameter in originals:
            module.register_parameter(name, torch.nn.Parameter(value(parameter), False))
        yield
    finally:
        for module, name, parameter in originals:
            module.register_parameter(name, parameter)


@contextmanager
def without_fp8(models: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Inside, `models` compute in their weights' precision: Megatron looks at its configuration in
    every forward pass."""
    configs: Any = {id(model.config): model.config for model in models}.values()
    kept = [(config, config.fp8) for config in configs]
    try:
        for config, _ in kept:
            config.fp8 = None
        yield
    finally:
        for config, fp8 in kept:
            config.fp8 = fp8


@contextmanager
def fillable(model: torch.nn.Module) -> Iterator[None]:
    """Inside, what is written to the parameters of `model` may be written in parts.

    A part written to one in FP8 would be scaled by itself, with the scale of the whole. So each
    has a tensor of its precision in the host's memory in its place, the one that the optimizer
    makes its main weights from where Transformer Engine keeps one: they begin unrounded. On
    leaving the parameters get their values.
    """
    plain: dict[torch.nn.Parameter, torch.Tensor] = {}

    def initial(parameter: torch.nn.Parameter) -> torch.Tensor:
        kept = getattr(parameter, "get_high_precision_init_val", lambda: None)()
        plain[parameter] = on_host(parameter) if kept is None else kept
        return plain[parameter]

    with replaced(model, initial):
        yield
    with torch.no_grad():
        for parameter, value in plain.items():
            parameter.copy_(value.to(parameter.device))


def on_host(parameter: torch.nn.Parameter) -> torch.Tensor:
    """An empty tensor of its shape and precision in the host's memory."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")


def keeps_scales(config: Any) -> bool:
    """Whether a model of `config` (Megatron's) has scales that follow from the steps before."""
    return bool(config.fp8) and config.fp8_recipe == "delayed"


def forget_scales() -> None:
    """Let Transformer Engine forget the amax histories of all models of this process, which it
    keeps beyond their end and rolls with those of the next."""
    names = ("transformer_engine.pytorch.quantization", "transformer_engine.pytorch.fp8")
    for module in filter(None, map(sys.modules.get, names)):
        module.FP8GlobalStateManager.reset()
        return


def without_extra_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A module's (sharded) state less Transformer Engine's own: scales of trainings in FP8."""
    return {key: value for key, value in state.items() if not key.endswith(EXTRA_STATE)}


def with_extra_state(module: torch.nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` made whole for `module.load_state_dict`: what it has none of stays as it is."""
    missing = [key for key in module.state_dict() if key.endswith(EXTRA_STATE)]
    return {**dict.fromkeys(missing), **state}


@contextmanager
def own_extra_state() -> Iterator[None]:
    """Inside, Transformer Engine reads the scales of the delayed recipe from its pickled state.

    To be used for checkpoints of a training's own folder alone, whose other files are pickled too.
    """
    before = os.environ.get(TRUST)
    os.environ[TRUST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST]
        else:
            os.environ[TRUST] = before
