"""Whether two folders hold the same model: every tensor, its shape, its bits. Pure, streaming.

Where both store a tensor in one precision their bits must be equal. Where one stores fewer bits,
it must be the other rounded. Anything else differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from megatron_vr.convert.hf_reader import Tensors, redundant
from megatron_vr.convert.units import Advance

State = Literal["equal", "rounded", "differs", "shape", "missing", "extra"]

_BITS = {2: torch.int16, 4: torch.int32}


@dataclass(frozen=True)
class Compared:
    """What became of one tensor of A in B. `difference` is the largest, where they differ."""

    name: str
    state: State
    detail: str = ""
    difference: float = 0.0

    @property
    def faulty(self) -> bool:
        """Whether it speaks against the two being one model."""
        return self.state not in ("equal", "rounded")


def compare_tensors(
    a: Tensors, b: Tensors, order: Sequence[str], advance: Advance
) -> list[Compared]:
    """Compare the tensors of both in `order`, which names all that either should have.

    `advance` is told the bytes of A that were read.
    """
    found = []
    in_a, in_b = a.names(), b.names()
    for name in order:
        found.append(_compare(a, b, name, name in in_a, name in in_b))
        if name in in_a:
            advance(torch.Size(a.shape(name)).numel() * a.dtype(name).itemsize)
        a.release()
        b.release()
    stray = (name for name in (in_a | in_b) - set(order) if not redundant(name))
    for name in sorted(stray):
        found.append(Compared(name, "extra", f"only in {a.folder if name in in_a else b.folder}"))
    return found


def _compare(a: Tensors, b: Tensors, name: str, in_a: bool, in_b: bool) -> Compared:
    if not (in_a and in_b):
        return Compared(name, "missing", f"not in {b.folder if in_a else a.folder}")
    if a.shape(name) != b.shape(name):
        return Compared(name, "shape", f"{a.shape(name)} and {b.shape(name)}")
    return same(name, a.tensor(name), b.tensor(name))


def same(name: str, a: Tensor, b: Tensor) -> Compared:
    """Compare two tensors of one shape."""
    if a.dtype == b.dtype:
        bits = _BITS[a.element_size()]
        if torch.equal(a.contiguous().view(bits), b.contiguous().view(bits)):
            return Compared(name, "equal")
    elif a.element_size() != b.element_size():
        wide, narrow = (a, b) if a.element_size() > b.element_size() else (b, a)
        as_finite = torch.equal(wide.isfinite(), narrow.isfinite())
        if as_finite and torch.equal(wide.to(narrow.dtype), narrow):
            return Compared(name, "rounded", f"{wide.dtype} rounded to {narrow.dtype}")
    return _difference(name, a, b)


def _difference(name: str, a: Tensor, b: Tensor) -> Compared:
    count, largest = 0, 0.0
    # In pieces: float64 copies of a whole embedding would be eight times its bytes.
    for x, y in zip(a.reshape(-1).split(2**22), b.reshape(-1).split(2**22), strict=True):
        gap = (x.double() - y.double()).abs()
        count += int((gap != 0).sum())
        largest = max(largest, float(gap.max()))
    return Compared(name, "differs", f"{count} of {a.numel()} elements", largest)
