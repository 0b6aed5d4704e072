"""All cases of all parts as those of one, so that one process imports what they need."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

from tools.bench.on_gpu.parts import PARTS, Part
from tools.bench.on_gpu.place import Place, Row

_BETWEEN = " / "
EVERY = Part(
    "every",
    "tests.bench.every_part",
    tuple(f"{part.name}{_BETWEEN}{case}" for part in PARTS for case in part.cases),
    share=1,
)


def measure(case: str, place: Place) -> Iterator[Row]:
    """The case of the part that its name begins with, as the part's own process measures it."""
    name, inner = case.split(_BETWEEN)
    (part,) = (part for part in PARTS if part.name == name)
    yield from importlib.import_module(part.module).measure(inner, place)
