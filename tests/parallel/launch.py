"""Run a function in several real gloo processes."""

from __future__ import annotations

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


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(rank, *args)` returned on each of `world_size` processes, by rank.

    `function` must be importable, since the processes are spawned; torch.distributed is
    initialised in them. A failing process ends the others, and its traceback is raised here.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (function, world_size, folder, args), nprocs=world_size)
        return [
            torch.load(Path(folder) / f"result-{rank}.pt", weights_only=False)
            for rank in range(world_size)
        ]


def _rank(
    rank: int, function: Callable[..., Any], world_size: int, folder: str, args: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    # A file and not a TCP port: tests run side by side.
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
    try:
        torch.save(function(rank, *args), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()
