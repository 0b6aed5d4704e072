"""Let Megatron-Core run in a process that has no CUDA.

Megatron names CUDA in its code where no setting reaches. `enable_cpu` answers those names with
their CPU counterparts, and answers Megatron only: other libraries in the process, which may ask
torch what it can do or build models on its meta device, see torch as it is.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

CPU = torch.device("cpu")
_MARK = "_megatron_vr_cpu"

# Whose calls are answered; training stores and restores random states as Megatron keeps them.
CALLERS = ("megatron.core", "megatron_vr.training")

# Modules of Megatron that make tensors with a literal device="cuda": states and norms of the
# optimizer, token counts of the schedules, flags and buffers of checkpoints and broadcasts.
FACTORY_CALLERS = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.distributed.param_and_grad_buffer",
    "megatron.core.optimizer.clip_grads",
    "megatron.core.optimizer.grad_scaler",
    "megatron.core.optimizer.optimizer",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.data",
    "megatron.core.utils",
)
_FACTORIES = ("empty", "empty_like", "tensor", "zeros")


def enable_cpu() -> None:
    """Give Megatron-Core, once in this process, CPU answers to what it asks of CUDA.

    Raises RuntimeError where CUDA is available: there the real thing must run.
    """
    if torch.cuda.is_available():
        raise RuntimeError(
            "enable_cpu() in a process with CUDA would send Megatron's tensors to the CPU; "
            "hide the GPUs (CUDA_VISIBLE_DEVICES='') to run on the CPU."
        )
    if hasattr(torch.cuda.current_device, _MARK):
        return
    _answer_device_queries()
    _answer_streams()
    _answer_factories()
    _answer_random_state()


def _answer_device_queries() -> None:
    # Buffers of tensor parallelism, pipeline communication and DDP are made on current_device().
    _answer_megatron(torch.cuda, "current_device", lambda: CPU)
    # The pipeline schedules and DDP wait for the device.
    _answer_megatron(torch.cuda, "synchronize", lambda device=None: None)
    # DDP of 0.19 asks for the stream before it reduces gradients, and waits on it for events of
    # CUDA graphs only, of which there are none; any use of this None fails.
    _answer_megatron(torch.cuda, "current_stream", lambda device=None: None)
    # Tied embeddings across stages and checkpoint exchange move tensors with .cuda().
    _answer_megatron(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor)
    # The mixed-precision optimizers sort parameters by the string that Tensor.type() returns, and
    # know the CUDA strings only.
    _answer_megatron(torch.Tensor, "type", _cuda_type)


class _NoStream:
    """A stream, and an event of it, on which everything is done when it is asked for."""

    def wait_stream(self, stream: object) -> None:
        """Nothing runs beside."""

    def record_event(self) -> _NoStream:
        return self

    def synchronize(self) -> None:
        """Nothing runs beside."""


def _answer_streams() -> None:
    # Experts' token counts are copied to the host on a stream that the dispatchers share.
    dispatchers = importlib.import_module("megatron.core.transformer.moe.token_dispatcher")
    dispatchers.MoEAlltoAllTokenDispatcher.cuda_dtoh_stream = _NoStream()


def _answer_megatron(owner: Any, name: str, answer: Callable[..., Any]) -> None:
    """Replace `owner.name` by `answer` for callers among `CALLERS`, and for them alone."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def by_caller(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return (answer if caller.startswith(CALLERS) else original)(*args, **kwargs)

    setattr(by_caller, _MARK, True)
    setattr(owner, name, by_caller)


_type = torch.Tensor.type


def _cuda_type(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    answer = _type(tensor, *args, **kwargs)
    return answer.replace("torch.", "torch.cuda.", 1) if isinstance(answer, str) else answer


class _Stand(ModuleType):
    """A module with some names of its own, that is `behind` in everything else."""

    def __init__(self, behind: ModuleType, **own: Any) -> None:
        super().__init__(behind.__name__)
        self._behind = behind
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


def _answer_factories() -> None:
    # torch's own functions stay: its meta and default devices know them by identity.
    on_cpu = _Stand(torch, **{name: _cuda_means_cpu(getattr(torch, name)) for name in _FACTORIES})
    for name in FACTORY_CALLERS:
        importlib.import_module(name).torch = on_cpu  # type: ignore[attr-defined]


def _cuda_means_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = CPU
        return factory(*args, **kwargs)

    return on_cpu


def _answer_random_state() -> None:
    # Megatron tracks random states per parallel region and restores them when it recomputes, and
    # checkpoints store them; the CPU generator stands in for the CUDA one.
    def get_state(*args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.get_rng_state()

    def set_state(state: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        torch.set_rng_state(state)

    _answer_megatron(torch.cuda, "get_rng_state", get_state)
    _answer_megatron(torch.cuda, "set_rng_state", set_state)
    _answer_megatron(torch.cuda, "manual_seed", lambda seed: torch.manual_seed(seed))
    random = importlib.import_module("megatron.core.tensor_parallel.random")
    random._get_cuda_rng_state = get_state  # type: ignore[attr-defined]
    random._set_cuda_rng_state = set_state  # type: ignore[attr-defined]
