"""Where a part is measured: on the GPU, or rehearsed on the CPU with tiny shapes. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


class NotHere(Exception):
    """A case that cannot be measured on this machine; the message says why."""


@dataclass(frozen=True)
class Row:
    """What was measured under one name; `values` are JSON's."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """`rehearse`: on the CPU, plain layers, tiny shapes. `until`: seconds since the epoch at which
    this process is ended. `smaller`: how often a case was tried before and ran out of memory.
    `folder`: for files that are thrown away.
    """

    rehearse: bool
    until: float
    folder: Path
    smaller: int = 0

    @property
    def device(self) -> Literal["cuda", "cpu"]:
        """Torch's name of it."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def spec(self) -> Literal["plain", "te"]:
        """The layers that are measured here."""
        return "plain" if self.rehearse else "te"

    def sized(self, real: T, tiny: T) -> T:
        """`real` on a GPU, `tiny` in a rehearsal."""
        return tiny if self.rehearse else real

    @property
    def left(self) -> float:
        """Seconds until this process is ended."""
        return self.until - time.time()
