"""Memory for tensors that is used again and again.

A page that is new to a process costs more than reading a file into it, and pages of a map are new
each time: where a model moves from file to file once, its tensors pass through the same memory.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

_ALIGNED = 64
_LEAST = 2**26


class Arena:
    """Tensors of a moment: all of them are invalid after `reset`."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._used = 0  # of the last block

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with any content."""
        count = torch.Size(shape).numel()
        size = count * dtype.itemsize
        if not self._blocks or self._used + size > len(self._blocks[-1]):
            if self._blocks and self._used == 0:
                self._blocks.pop()  # too small, and nothing is in it
            self._blocks.append(torch.empty(max(size, _LEAST), dtype=torch.uint8))
            self._used = 0
        begin = self._used
        self._used = -(-(begin + size) // _ALIGNED) * _ALIGNED
        return self._blocks[-1][begin : begin + size].view(dtype).reshape(shape)

    def read(self, path: Path, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The contiguous tensor that stands at byte `begin` of `path`. Raises EOFError where the
        file ends before it does."""
        tensor = self.take(shape, dtype)
        read_into(tensor, path, begin)
        return tensor

    def reset(self) -> None:
        """Use the memory anew; one block where there were several."""
        if len(self._blocks) > 1:
            size = sum(len(block) for block in self._blocks)
            self._blocks.clear()  # before the new one is there
            self._blocks.append(torch.empty(size, dtype=torch.uint8))
        self._used = 0


def read_into(tensor: Tensor, path: Path, begin: int) -> None:
    """Fill the contiguous `tensor` from byte `begin` of `path`. Raises EOFError where the file ends
    before it does."""
    view = tensor.reshape(-1).view(torch.uint8).numpy().data
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), begin, len(view), os.POSIX_FADV_WILLNEED)
        file.seek(begin)
        # The system reads at most 2 GiB at a time.
        while view:
            count = file.readinto(view)
            if not count:
                raise EOFError(f"{path} ends {len(view)} bytes too early")
            view = view[count:]
        # Read once: kept, these pages would have to be reclaimed for what is written.
        os.posix_fadvise(file.fileno(), begin, tensor.nbytes, os.POSIX_FADV_DONTNEED)
