"""A conversion as units of work: one file each, made in any order, by any process. Pure.

Invariants:
- the units follow from the architecture, the layout and the stored precisions alone, so a
  conversion that is started again has the same ones;
- every parameter is in exactly one unit, in the model's order;
- a unit has parameters of one pipeline stage only, and more than one only up to a size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_vr.convert.maps import Index

Advance = Callable[[int], None]
Parameter = tuple[str, Index]  # a row of the table by its Megatron name, and which one it is


@dataclass(frozen=True)
class Item:
    """A parameter, its size in bytes, and the stage (in the model's order) that it belongs to."""

    parameter: Parameter
    nbytes: int
    stage: int = 0


@dataclass(frozen=True)
class Unit:
    """The file `name`, of `nbytes` of tensors."""

    name: str
    nbytes: int
    parameters: tuple[Parameter, ...]


class Conversion(Protocol):
    """What is to be written. Plain data, so that it can be sent to another process."""

    @property
    def units(self) -> Sequence[Unit]:
        """The files."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What the files' contents follow from (JSON): two conversions with the same one make
        the same files."""
        ...

    def make(self, unit: Unit, path: Path, advance: Advance) -> Any:
        """Write `unit` as `path`, telling `advance` the bytes; what `finish` needs of it (JSON)."""
        ...

    def finish(self, folder: Path, made: Mapping[str, Any]) -> None:
        """Write into `folder` what all units together need; `made` are their results by name."""
        ...


def group(items: Iterable[Item], limit: int) -> list[list[Item]]:
    """`items` cut, in order, where the stage changes or a group would exceed `limit` bytes."""
    groups: list[list[Item]] = []
    size = 0
    for item in items:
        fits = groups and groups[-1][-1].stage == item.stage and size + item.nbytes <= limit
        if not fits:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += item.nbytes
    return groups
