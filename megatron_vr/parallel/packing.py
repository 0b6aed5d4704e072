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

DEFAULT_HIDDEN_SIZE = 2048


@dataclass(frozen=True)
class CostModel:
    """Work of a sequence of n tokens in a transformer of width h, in tokens' worth of projections.

    A layer's projections cost 24 h² operations a token and causal attention 2 h n, hence
    n (1 + n / 12 h).
    """

    hidden_size: int = DEFAULT_HIDDEN_SIZE

    def __call__(self, length: int) -> float:
        """The cost of one sequence of `length` tokens."""
        return length * (1.0 + length / (12.0 * self.hidden_size))


def pack_batch(
    lengths: Sequence[int],
    ranks: int,
    budget: int,
    cost: CostModel | None = None,
    multiple: int = 1,
) -> tuple[MicroBatches, ...]:
    """For each of `ranks` data-parallel ranks its micro-batches, as indices into `lengths`.

    `budget` is the largest number of tokens of a micro-batch. `multiple` divides the number of
    micro-batches of a rank (interleaved pipelines ask for it). Indices within a micro-batch ascend.
    Raises DataError for a sequence longer than the budget.
    """
    if budget < 1 or ranks < 1 or multiple < 1:
        raise ValueError(f"budget={budget}, ranks={ranks} and multiple={multiple} must be positive")
    _check_lengths(lengths, budget)
    costs = [(cost or CostModel())(length) for length in lengths]
    tight = _best_fit(lengths, budget)
    per_rank = _round_up(max(1, -(-len(tight) // ranks)), multiple)
    bins = _balanced(lengths, costs, budget, per_rank * ranks)
    if bins is None:
        bins = tight + [[] for _ in range(per_rank * ranks - len(tight))]
    return _deal(bins, costs, ranks, per_rank)


def _check_lengths(lengths: Sequence[int], budget: int) -> None:
    for index, length in enumerate(lengths):
        if length > budget:
            raise DataError(
                f"sequence {index} of the batch has {length} tokens, more than "
                f"micro_batch_tokens={budget}; raise micro_batch_tokens to at least {length} or "
                "drop longer sequences"
            )


def _best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Few bins: longest first, each into the fullest bin that still has room for it."""
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, bin), ascending
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
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
    lengths: Sequence[int], costs: Sequence[float], budget: int, count: int
) -> list[list[int]] | None:
    """`count` bins of nearly equal cost: costliest first, each into the cheapest bin.

    None where the cheapest bin has no room.
    """
    bins: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    heap = [(0.0, target) for target in range(count)]
    for index in sorted(range(len(lengths)), key=lambda i: (-costs[i], i)):
        spent, target = heap[0]
        if tokens[target] + lengths[index] > budget:
            return None
        bins[target].append(index)
        tokens[target] += lengths[index]
        heapq.heapreplace(heap, (spent + costs[index], target))
    return bins


def _deal(
    bins: list[list[int]], costs: Sequence[float], ranks: int, per_rank: int
) -> tuple[MicroBatches, ...]:
    """Give each rank `per_rank` bins: costliest first, to the rank with the least work so far."""
    totals = [sum(costs[index] for index in found) for found in bins]
    dealt: list[list[tuple[int, ...]]] = [[] for _ in range(ranks)]
    heap = [(0.0, rank) for rank in range(ranks)]
    for target in sorted(range(len(bins)), key=lambda i: (-totals[i], i)):
        spent, rank = heapq.heappop(heap)
        dealt[rank].append(tuple(sorted(bins[target])))
        if len(dealt[rank]) < per_rank:
            heapq.heappush(heap, (spent + totals[target], rank))
    return tuple(tuple(micro_batches) for micro_batches in dealt)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
