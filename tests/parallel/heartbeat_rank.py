"""Ranks of small worlds under a heartbeat: `python -m tests.parallel.heartbeat_rank`.

The process imports torch once and forks the ranks of each world that it is asked for. It reads a
line of JSON and answers with one:
- `{"start": [RANKS, FOLDER, PATIENCE, ACT]}`: the process ids of the ranks. Each touches
  `begun-RANK` in the folder once it works, and writes its errors to `errors-RANK`.
- `{"poll": PID}`: the exit code of a rank, which has been a zombie until it is asked for; null
  while it runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_vr.errors import DataError, Requeue, VRError
from megatron_vr.parallel.heartbeat import Heartbeat
from megatron_vr.parallel.world import World

TIMEOUT = timedelta(minutes=5)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            size, folder, patience, act = request["start"]
            answer = []
            for rank in range(size):
                pid = os.fork()
                if pid == 0:  # it ends as any process does, when this function returns
                    as_rank(World(rank, size), Path(folder), patience, act)
                    return
                answer.append(pid)
        print(json.dumps(answer), flush=True)


def as_rank(world: World, folder: Path, patience: float, act: str) -> None:
    with (folder / f"errors-{world.rank}").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    # A file and not a TCP port: tests run side by side.
    store = dist.FileStore(str(folder / "store"), world.size)
    dist.init_process_group(
        "gloo", store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT
    )
    try:
        with Heartbeat(world, patience) as heartbeat:
            (folder / f"begun-{world.rank}").touch()
            try:
                ACTS[act](world, folder)
            except RuntimeError as error:
                heartbeat.explain(error)
                raise
    except VRError as error:
        print(f"rank {world.rank} says: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


def sum_for_ever(world: World, folder: Path) -> None:
    while True:
        dist.all_reduce(torch.ones(4))
        time.sleep(0.01)


def work_alone(world: World, folder: Path) -> None:
    """No collective: only the heartbeat can notice that a peer is dead."""
    time.sleep(600)


def wait_in_a_barrier(world: World, folder: Path) -> None:
    """Rank 1 never comes: the others wait in C code."""
    if world.rank == 1:
        time.sleep(600)
    dist.barrier()


def leave_early(world: World, folder: Path) -> None:
    """All but the last rank leave, rank 0 and its store too; the last works on for a while."""
    if world.rank == world.size - 1:
        time.sleep(12)
        (folder / "survived").touch()


def stop_early(world: World, folder: Path) -> None:
    """Rank 1 stops as it was asked to; the others meet its absence in a collective."""
    if world.rank == 1:
        raise Requeue("rank 1 was asked to stop")
    sum_for_ever(world, folder)


def fail(world: World, folder: Path) -> None:
    """Rank 1 fails with a message; the others are in no collective."""
    if world.rank == 1:
        raise DataError("row 7 is bad")
    time.sleep(600)


def break_alone(world: World, folder: Path) -> None:
    """An error that no peer has caused."""
    if world.rank == 1:
        raise RuntimeError("out of luck")
    time.sleep(600)


ACTS = {
    act.__name__: act
    for act in (
        sum_for_ever,
        work_alone,
        wait_in_a_barrier,
        leave_early,
        stop_early,
        fail,
        break_alone,
    )
}

if __name__ == "__main__":
    main()
