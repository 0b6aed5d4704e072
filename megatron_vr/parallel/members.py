"""The processes of the ranks: where each runs, and whether one beside this one still does."""

from __future__ import annotations

import os
import socket

import psutil  # type: ignore[import-untyped]

from megatron_vr.parallel.vital import Member
from megatron_vr.parallel.world import World


def gather_members(world: World) -> list[Member]:
    """Every rank's process, by rank; all ranks call it."""
    import torch.distributed as dist

    own = Member(
        rank=world.rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        namespace=os.readlink("/proc/self/ns/pid"),
        started=psutil.Process().create_time(),
    )
    members: list[Member] = [own] * world.size
    dist.all_gather_object(members, own)
    return members


def is_gone(member: Member) -> bool:
    """Whether the process has ended, also where its parent has not noticed yet.

    To be asked of members beside this process.
    """
    try:
        process = psutil.Process(member.pid)
        return process.status() == psutil.STATUS_ZOMBIE or process.create_time() != member.started
    except psutil.NoSuchProcess:
        return True
