"""What a conversion leaves in the page cache: nothing, where it would not fit.

A file larger than the free memory pushes its own pages out, and others', at a cost that exceeds
that of reading and writing it.
"""

from __future__ import annotations

import os

import psutil  # type: ignore[import-untyped]

STEP = 2**28


def crowds(nbytes: int) -> bool:
    """Whether `nbytes` more would fill most of what memory is free."""
    return bool(nbytes > psutil.virtual_memory().available // 2)


class WriteBehind:
    """Starts writing a growing file of a conversion of `total` bytes, and forgets what is written;
    does nothing where all of it fits into memory."""

    def __init__(self, descriptor: int, total: int) -> None:
        self._descriptor = descriptor
        self._step = STEP if crowds(total) else None
        self._new = 0

    def wrote(self, nbytes: int) -> None:
        """`nbytes` more are in the file."""
        self._new += nbytes
        if self._step is not None and self._new >= self._step:
            self._new = 0
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
