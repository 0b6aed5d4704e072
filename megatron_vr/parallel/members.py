"""The processes of the ranks: where each runs, and whether one beside this one still does."""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from megatron_vr.parallel.hosts import node_name
from megatron_vr.parallel.vital import Member
from megatron_vr.parallel.world import World

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# In /proc/PID/stat, counted from the field after the command's name.
START_TIME = 19


def gather_members(world: World) -> list[Member]:
    """Every rank's process, by rank; all ranks call it."""
    import torch.distributed as dist

    own = Member(
        rank=world.rank,
        pid=os.getpid(),
        host=node_name(),
        # Of two hosts with one name, and of two containers of one host.
        namespace=BOOT_ID.read_text().strip() + os.readlink("/proc/self/ns/pid"),
        started=_started(os.getpid()),
    )
    members: list[Member] = [own] * world.size
    dist.all_gather_object(members, own)
    return members


def is_gone(member: Member) -> bool:
    """Whether the process has ended, also where its parent has not noticed yet.

    To be asked of members beside this process.
    """
    try:
        zombie = psutil.Process(member.pid).status() == psutil.STATUS_ZOMBIE
        return zombie or _started(member.pid) != member.started
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return True


def _started(pid: int) -> int:
    """Clock ticks from the host's start to the process's; no change of the clock moves them."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[START_TIME])
