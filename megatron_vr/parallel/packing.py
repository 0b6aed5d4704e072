"""Which sequences of a global batch share a micro-batch, and which rank computes it. Pure.

Invariants of `pack_batch`:
- every index of the batch is in exactly one micro-batch of exactly one rank;
- no micro-batch holds more tokens than the budget;
- all ranks have the same number of micro-batches (some may be empty), because every rank must
  take part in every collective; that number is a multiple of `multiple` and at least one;
- the same lengths give the same plan on every rank.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vr.errors import DataError

MicroBatches = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class CostModel:
    """Work of a sequence of n tokens, in tokens' worth of projections: n + pair · n² / 2.

    `pair` is the work of attention between one query and one key over that of a token's
    projections. The default is that of a transformer of width 2048 with an MLP four times as wide.
    """

    pair: float = 4 / (24 * 2048)

    @staticmethod
    def of(hidden: int, ffn: int, query: int, key_value: int) -> CostModel:
        """For layers of these widths; `query` and `key_value` are heads times their dimension."""
        projections = hidden * (query + 2 * key_value) + query * hidden + 3 * hidden * ffn
        return CostModel(2 * query / projections)

    def __call__(self, length: int) -> float:
        """The cost of one sequence of `length` tokens."""
        return length * (1.0 + self.pair * length / 2)


def pack_batch(
    lengths: Sequence[int],
    ranks: int,
    budget: int,
    cost: CostModel | None = None,
    multiple: int = 1,
    costs: Sequence[float] | None = None,
) -> tuple[MicroBatches, ...]:
    """For each of `ranks` data-parallel ranks its micro-batches, as indices into `lengths`.

    `budget` is the largest number of tokens of a micro-batch. `multiple` divides the number of
    micro-batches of a rank (interleaved pipelines ask for it). `costs` are the sequences' work
    where `cost` of their lengths is not. Indices within a micro-batch ascend.
    Raises DataError for a sequence longer than the budget.
    """
    if budget < 1 or ranks < 1 or multiple < 1:
        raise ValueError(f"budget={budget}, ranks={ranks} and multiple={multiple} must be positive")
    _check_lengths(lengths, budget)
    if costs is None:
        costs = [(cost or CostModel())(length) for length in lengths]
    shares = _shares(costs, ranks)
    tight = [_best_fit(share, lengths, budget) for share in shares]
    count = _round_up(max(1, *(len(bins) for bins in tight)), multiple)
    packed = []
    for share, bins in zip(shares, tight, strict=True):
        even = _balanced(share, lengths, costs, budget, count)
        found = even if even is not None else bins + [[] for _ in range(count - len(bins))]
        packed.append(tuple(tuple(sorted(pack)) for pack in found))
    return tuple(packed)


def _shares(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices for each rank, of nearly equal cost: costliest first, to the least loaded rank.

    No rank has more than the mean and one sequence.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        spent, rank = heap[0]
        shares[rank].append(index)
        heapq.heapreplace(heap, (spent + costs[index], rank))
    return shares


def _check_lengths(lengths: Sequence[int], budget: int) -> None:
    for index, length in enumerate(lengths):
        if length > budget:
            raise DataError(
                f"sequence {index} of the batch has {length} tokens, more than "
                f"micro_batch_tokens={budget}; raise micro_batch_tokens to at least {length} or "
                "drop longer sequences"
            )


def _best_fit(share: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Few bins: longest first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), ascending
    for index in sorted(share, key=lambda i: (-lengths[i], i)):
        at = bisect_left(rooms, (lengths[index], -1))
        if at == len(rooms):
            bins.append([])
            free, target = budget, len(bins) - 1
        else:
            free, target = rooms.pop(at)
        bins[target].append(index)
        insort(rooms, (free - lengths[index], target))
    return bins


def _balanced(
    share: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    budget: int,
    count: int,
) -> list[list[int]] | None:
    """`count` bins of nearly equal cost: costliest first, each into the cheapest bin.

    None where the cheapest bin has no room.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    heap = [(0.0, target) for target in range(count)]
    for index in sorted(share, key=lambda i: (-costs[i], i)):
        spent, target = heap[0]
        if tokens[target] + lengths[index] > budget:
            return None
        bins[target].append(index)
        tokens[target] += lengths[index]
        heapq.heapreplace(heap, (spent + costs[index], target))
    return bins


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
