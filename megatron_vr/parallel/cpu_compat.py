"""Let Megatron-Core run in a process that has no CUDA.

Megatron names CUDA in its code where no setting reaches. `enable_cpu` replaces those names, and
only those, by their CPU counterparts. Each replaced name raises without CUDA, so code that works
without this module works the same with it; `Tensor.type()` alone would answer differently, and
does so for callers inside Megatron only.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

CPU = torch.device("cpu")
_MARK = "_megatron_vr_cpu"

# Factories that Megatron's optimizer, schedules and checkpointing call with device="cuda".
_FACTORIES = ("empty", "empty_like", "ones", "tensor", "zeros")


def enable_cpu() -> None:
    """Replace, once in this process, what Megatron-Core takes for granted from CUDA.

    Raises RuntimeError where CUDA is available: there the real thing must run.
    """
    if torch.cuda.is_available():
        raise RuntimeError(
            "enable_cpu() in a process with CUDA would send Megatron's tensors to the CPU; "
            "hide the GPUs (CUDA_VISIBLE_DEVICES='') to run on the CPU."
        )
    if hasattr(torch.cuda.current_device, _MARK):
        return
    _replace_device_queries()
    _replace_factories()
    _replace_random_state()
    _replace_type_strings()


def _set(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    setattr(replacement, _MARK, True)
    setattr(owner, name, replacement)


def _replace_device_queries() -> None:
    # Buffers of tensor parallelism, pipeline communication and DDP are made on current_device().
    _set(torch.cuda, "current_device", lambda: CPU)
    # The pipeline schedules and finish of gradient communication wait for the device.
    _set(torch.cuda, "synchronize", lambda device=None: None)
    # DDP of 0.19 asks for the stream before it reduces gradients, and waits on it for events of
    # CUDA graphs only, of which there are none; any use of this None fails.
    _set(torch.cuda, "current_stream", lambda device=None: None)
    # Tied embeddings across stages and checkpoint exchange move tensors with .cuda().
    _set(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor)


def _replace_factories() -> None:
    for name in _FACTORIES:
        _set(torch, name, _cuda_means_cpu(getattr(torch, name)))


def _cuda_means_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return on_cpu


def _replace_random_state() -> None:
    # Megatron tracks random states per parallel region and restores them when it recomputes;
    # the CPU generator stands in for the CUDA one.
    from megatron.core.tensor_parallel import random

    def get_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    def manual_seed(seed: int) -> None:
        torch.manual_seed(seed)

    _set(random, "_get_cuda_rng_state", get_state)
    _set(random, "_set_cuda_rng_state", set_state)
    _set(torch.cuda, "get_rng_state", get_state)
    _set(torch.cuda, "set_rng_state", set_state)
    _set(torch.cuda, "manual_seed", manual_seed)


def _replace_type_strings() -> None:
    # The mixed-precision optimizers sort parameters by the string that Tensor.type() returns, and
    # know the CUDA strings only.
    original = torch.Tensor.type

    @functools.wraps(original)
    def type_of(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(tensor, *args, **kwargs)
        if isinstance(answer, str) and answer.startswith("torch."):
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("megatron.core") and not answer.startswith("torch.cuda."):
                return answer.replace("torch.", "torch.cuda.", 1)
        return answer

    _set(torch.Tensor, "type", type_of)
