"""A node's own memory at a save, beside what its job asks of Slurm. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from megatron_vr.cluster.job import Shape
from megatron_vr.cluster.planner.hardware import GIB
from megatron_vr.errors import SettingsError

_ASKED = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
_UNITS = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class HostMemory:
    """Bytes that a checkpoint's copies `needed` on each node, without the processes' own, and
    what the job's shape says: `asked` as sbatch's --mem has it, or one of its flags (`flagged`)."""

    needed: int
    asked: str | None = None
    flagged: bool = False

    @property
    def is_open(self) -> bool:
        """Whether nothing says how much the job gets."""
        return self.asked is None and not self.flagged

    @property
    def fault(self) -> str | None:
        """Why a save would be killed; None where it has room, or where it cannot be told."""
        if self.asked is None or self.flagged:
            return None
        given = slurm_bytes(self.asked)
        if given is None or given >= self.needed:
            return None
        return (
            f"its jobs ask for {self.asked} on each node (`memory` of its shape in `cluster`), and "
            f"a save takes {self.needed / GIB:,.0f} GiB there; raise it, or take 0 for all of the "
            "node's"
        )


def host_of(needed: int, shape: Shape) -> HostMemory:
    """`needed` beside what a job of `shape` asks for."""
    flagged = any(flag.startswith("--mem") for flag in shape.flags)
    return HostMemory(needed, shape.memory, flagged)


def slurm_bytes(memory: str) -> int | None:
    """Bytes of a --mem as sbatch reads it: MiB, or with K, M, G, T. None for 0, a whole node's.

    Raises SettingsError for what sbatch does not read.
    """
    found = _ASKED.fullmatch(memory.strip())
    if found is None:
        raise SettingsError(
            f"`memory` of a shape in `cluster` is {memory!r}, which Slurm does not read; write it "
            "as in 200G, or 0 for all of the node's"
        )
    return int(found[1]) * _UNITS[found[2].upper()] or None
