"""The softmax of a chunk of logits on a GPU, in two passes over it (Triton).

In torch's own operations a chunk would be read and written six times, in float32. Here logits stay
as the matrix product leaves them (bfloat16, or float32), are read once for the sums and once more
to be overwritten with their gradient; all arithmetic is float32. One program has one row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns that a program holds at once, and its warps.
_COLUMNS, _WARPS = 8192, 16


def row_sums(logits: Tensor, real: int, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row of `logits` [n, columns], over its first `real` columns: the largest value m, the
    sum of exp(l − m), and the value at `labels` [n] int64 (0 where a label is −1); [n] float32.

    Without a real column m is −inf and the sum 0.
    """
    found = torch.empty(3, len(logits), dtype=torch.float32, device=logits.device)
    if len(logits):
        _row_sums[(len(logits),)](
            logits, labels, found, logits.stride(0), len(logits), real, _COLUMNS, num_warps=_WARPS
        )
    return found[0], found[1], found[2]


def overwrite_with_gradient(
    logits: Tensor, real: int, labels: Tensor, normaliser: Tensor, derivative: Tensor
) -> None:
    """`logits` [n, columns] become derivative · ([v = label] − exp(l_v − normaliser)), and 0 from
    column `real` on. `normaliser` and `derivative` [n] float32; a label of −1 is in no column."""
    if len(logits):
        _overwrite[(len(logits),)](
            *(logits, labels, normaliser, derivative, logits.stride(0), real, logits.shape[1]),
            _COLUMNS,
            num_warps=_WARPS,
        )


@triton.jit
def _row_sums(  # type: ignore[no-untyped-def]
    logits, labels, found, stride, rows, REAL: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    largest = float("-inf")
    total = 0.0
    for first in range(0, REAL, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        values = tl.load(start + column, mask=column < REAL, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(largest, tl.max(values, axis=0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(values - higher), axis=0)
        largest = higher
    label = tl.load(labels + row)
    at = tl.load(start + label, mask=label >= 0, other=0.0).to(tl.float32)
    tl.store(found + row, largest)
    tl.store(found + rows + row, total)
    tl.store(found + 2 * rows + row, at)


@triton.jit
def _overwrite(  # type: ignore[no-untyped-def]
    logits,
    labels,
    normaliser,
    derivative,
    stride,
    REAL: tl.constexpr,
    ALL: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * stride
    label = tl.load(labels + row)
    shift = tl.load(normaliser + row)
    factor = tl.load(derivative + row)
    for first in range(0, ALL, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        there = column < ALL
        values = tl.load(start + column, mask=there, other=0.0).to(tl.float32)
        chosen = tl.where(column == label, 1.0, 0.0)
        gradient = factor * (chosen - tl.exp(values - shift))
        gradient = tl.where(column < REAL, gradient, 0.0)
        tl.store(start + column, gradient.to(logits.dtype.element_ty), mask=there)
