"""Run a function in several real gloo processes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = timedelta(seconds=120)

# Imported once, by a process that all ranks are forked from.
PRELOADED = ["megatron_vr.training.trainer", "megatron_vr.models.gpt"]


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, fresh: bool = False
) -> list[Any]:
    """What `function(rank, *args)` returned on each of `world_size` processes, by rank.

    `function` must be importable; torch.distributed is initialised in the processes, which have
    imported Megatron, or nothing where they shall be `fresh`. A failing process ends the others,
    and its traceback is raised here.
    """
    if not fresh:
        multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(
            _rank,
            (function, world_size, folder, dict(os.environ), args),
            nprocs=world_size,
            start_method="spawn" if fresh else "forkserver",
        )
        return [
            torch.load(Path(folder) / f"result-{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


def dissolve() -> None:
    """Dissolve Megatron's groups in a rank, and end their threads.

    Megatron only forgets its groups, and a thread of each wakes a hundred times a second: after
    a dozen layouts the ranks do nothing else.
    """
    from megatron.core import parallel_state
    from torch.distributed.distributed_c10d import _world

    parallel_state.destroy_model_parallel()
    for group in list(_world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
    gc.collect()  # models hold groups, and each other


def _rank(
    rank: int,
    function: Callable[..., Any],
    world_size: int,
    folder: str,
    environment: dict[str, str],
    args: tuple[Any, ...],
) -> None:
    # What was imported need not be gone through whenever garbage is looked for.
    gc.freeze()
    # Of this test: the process that was forked began in another one.
    os.environ.clear()
    os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    # A file and not a TCP port: tests run side by side.
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        torch.save(function(rank, *args), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()
