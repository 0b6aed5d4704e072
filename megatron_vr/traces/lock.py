"""A lock of the kernel's on a file, which goes with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from megatron_vr.errors import StageError

LOCK_SECONDS = 5.0  # to wait for a process that is ending
# Of file systems that have no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def locked(file: Path, busy: str) -> Iterator[None]:
    """Let no other process, nor another block of this one, hold `file` meanwhile.

    Raises StageError with the words `busy` where one still does after a few seconds: one that was
    killed takes a moment to end. The lock (flock) goes with the process, even by `kill -9`, and
    `file` stays; programs that this one starts do not inherit it, forks without an exec do. Some
    network file systems keep it from processes of the same host alone, some have none: a warning
    says so.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab") as held:
        try:
            _take(held)
        except BlockingIOError:
            raise StageError(busy) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{file} cannot be locked ({error}): see to it that no other process works there",
                stacklevel=3,
            )
        yield


@retry(
    retry=retry_if_exception_type(BlockingIOError),
    stop=stop_after_delay(LOCK_SECONDS),
    wait=wait_fixed(0.1),
    reraise=True,
)
def _take(file: IO[bytes]) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
