"""How a model is split over processes, and the process groups that follow from it.

`Layout` and `check_layout` decide without Megatron, torch or a process group; `join_world`,
`initialise` and `destroy` act, and import what they need when they are called.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from megatron_vr.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from megatron_vr.models.architecture import Architecture

# Stages must not draw the same random numbers; Megatron's own offsets for tensor ranks stay below.
PIPELINE_SEED_STRIDE = 100


@dataclass(frozen=True)
class Layout:
    """Ranks per split of the model; what is left over is data parallel.

    `virtual_pipeline` is the number of model chunks on each pipeline rank (None: one, no
    interleaving). `sequence_parallel` also splits activations outside attention and MLP over the
    tensor ranks.
    """

    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    virtual_pipeline: int | None = None
    sequence_parallel: bool = False

    @property
    def model_ranks(self) -> int:
        """Processes that together hold one copy of the model and one sequence."""
        return self.tensor * self.pipeline * self.context

    def data_parallel(self, world_size: int) -> int:
        """Copies of the model in `world_size` processes (a checked layout divides evenly)."""
        return world_size // self.model_ranks

    def padded_vocabulary(self, vocab_size: int) -> int:
        """Rows of the embedding: `vocab_size` rounded up to a multiple of `tensor`."""
        return -(-vocab_size // self.tensor) * self.tensor


def check_layout(layout: Layout, architecture: Architecture, world_size: int) -> None:
    """Raise SettingsError unless `architecture` can be split by `layout` over `world_size` ranks.

    Pure: to be called before any process group exists.
    """
    _check_counts(layout)
    experts = architecture.experts
    if experts is not None and layout.tensor > 1 and not layout.sequence_parallel:
        raise SettingsError(
            f"parallel.tensor={layout.tensor} without parallel.sequence=true cannot split a model "
            "with experts; set parallel.sequence=true, or parallel.tensor=1."
        )
    units = (
        ("MLP units", architecture.ffn_hidden_size)
        if experts is None
        else ("MLP units of an expert", experts.ffn_hidden_size)
    )
    for what, size in (
        ("attention heads", architecture.heads),
        ("key/value heads", architecture.kv_heads),
        units,
    ):
        if size % layout.tensor:
            raise SettingsError(
                f"parallel.tensor={layout.tensor} does not divide the model's {size} {what}; "
                f"choose a divisor of {size}."
            )
    if layout.tensor > architecture.vocab_size:
        raise SettingsError(
            f"parallel.tensor={layout.tensor} exceeds the vocabulary of "
            f"{architecture.vocab_size} tokens; choose a smaller one."
        )
    _check_stages(layout, architecture.layers)
    if world_size % layout.model_ranks:
        raise SettingsError(
            f"parallel.processes={world_size} is not a multiple of tensor x pipeline x context = "
            f"{layout.tensor} x {layout.pipeline} x {layout.context} = {layout.model_ranks}; "
            f"start a multiple of {layout.model_ranks} processes or split the model less."
        )


def _check_counts(layout: Layout) -> None:
    counts = {"tensor": layout.tensor, "pipeline": layout.pipeline, "context": layout.context}
    for name, count in counts.items():
        if count < 1:
            raise SettingsError(f"parallel.{name}={count} must be at least 1.")
    if layout.virtual_pipeline is not None and layout.virtual_pipeline < 2:
        raise SettingsError(
            f"parallel.virtual_pipeline={layout.virtual_pipeline} must be at least 2, or left out "
            "for one chunk on each rank."
        )
    if layout.sequence_parallel and layout.tensor == 1:
        raise SettingsError(
            "parallel.sequence=true splits activations over the tensor ranks, but "
            "parallel.tensor=1; raise parallel.tensor or turn parallel.sequence off."
        )
    if layout.virtual_pipeline is not None and layout.pipeline == 1:
        raise SettingsError(
            f"parallel.virtual_pipeline={layout.virtual_pipeline} interleaves pipeline stages, but "
            "parallel.pipeline=1; raise parallel.pipeline or leave virtual_pipeline out."
        )


def _check_stages(layout: Layout, layers: int) -> None:
    chunks = layout.virtual_pipeline or 1
    stages = layout.pipeline * chunks
    if layers % stages:
        settings = f"parallel.pipeline={layout.pipeline}"
        if chunks > 1:
            settings += f" with parallel.virtual_pipeline={chunks}"
        raise SettingsError(
            f"{settings} does not divide the model's {layers} layers; "
            f"the number of stages ({stages}) must be a divisor of {layers}."
        )


def device_defaults(environment: Mapping[str, str]) -> dict[str, str]:
    """What a rank with a GPU lacks in its `environment` when CUDA begins.

    One queue to the device, so that up to Hopper a collective that hides behind a product begins
    before it (as Megatron asks for with tensor parallelism). Memory in segments that grow: packs
    differ in length, and their tensors would leave holes.
    """
    wanted = {
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    # The newer name of the second.
    if "PYTORCH_ALLOC_CONF" in environment:
        del wanted["PYTORCH_CUDA_ALLOC_CONF"]
    return {name: value for name, value in wanted.items() if name not in environment}


def join_world(timeout_minutes: float) -> None:
    """Initialise torch.distributed: nccl where there is a GPU, else gloo. Twice is harmless.

    `RANK`, `WORLD_SIZE`, `MASTER_ADDR`, `MASTER_PORT` and (GPU) `LOCAL_RANK` come from the
    environment, as torchrun sets them. A world of one meets in memory and needs none of them.
    A collective that takes longer than `timeout_minutes` fails. Raises SettingsError when the
    environment names a world but not how to meet it.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    timeout = timedelta(minutes=timeout_minutes)
    if torch.cuda.is_available():
        os.environ |= device_defaults(os.environ)
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        backend = "nccl"
    else:
        backend = "gloo"
    if world_size == 1:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SettingsError(
            f"WORLD_SIZE={world_size} but {', '.join(missing)} not set in the environment; "
            "start the processes with torchrun or with this package's own launcher."
        )
    dist.init_process_group(backend, timeout=timeout)


def initialise(
    layout: Layout, seed: int, device: str | torch.device, timeout_minutes: float = 30.0
) -> None:
    """Form Megatron's process groups for `layout` and seed every random generator.

    `device` "cpu" also turns on `cpu_compat`. torch.distributed must be initialised and the
    layout checked. A collective inside a group that takes longer than `timeout_minutes` fails.
    Raises RuntimeError without a process group.
    """
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        raise RuntimeError("initialise() needs torch.distributed: call join_world() first.")
    if torch.device(device).type == "cpu":
        from megatron_vr.parallel.cpu_compat import enable_cpu

        enable_cpu()
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        virtual_pipeline_model_parallel_size=layout.virtual_pipeline,
        context_parallel_size=layout.context,
        distributed_timeout_minutes=timeout_minutes,
    )
    stage_seed = seed + PIPELINE_SEED_STRIDE * parallel_state.get_pipeline_model_parallel_rank()
    torch.manual_seed(stage_seed)
    tensor_parallel.model_parallel_cuda_manual_seed(stage_seed)


def destroy() -> None:
    """Dissolve Megatron's groups and torch.distributed, so that another layout can be formed."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
