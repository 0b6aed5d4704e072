"""The processes of a run: who am I, wait for all, hear from the first."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """`rank` of `size` processes that run the same program side by side."""

    rank: int
    size: int

    @staticmethod
    def from_environment() -> World:
        """As torchrun set it; a single process where it did not."""
        return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that talks and publishes."""
        return self.rank == 0

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share, dealt out in turn."""
        return list(items[self.rank :: self.size])

    def barrier(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def from_main(self, value: T) -> T:
        """The main process's `value`, on every process."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]
