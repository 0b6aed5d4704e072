"""Which sequences of a pack share one attention call. Pure decisions and their index tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

# A padded batch may compute this many positions per real token before it is worth splitting.
PADDING_LIMIT = 2.0


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of `lengths` in groups whose padded area is at most twice their tokens.

    One group when all sequences together stay within the limit, else groups in which no sequence
    is shorter than half the longest: at most 1 + log2(longest / shortest) of them. Empty sequences
    are left out.
    """
    order = [index for index, length in enumerate(lengths) if length > 0]
    if not order:
        return []
    longest = max(lengths)
    if longest * len(order) <= PADDING_LIMIT * sum(lengths):
        return [order]
    order.sort(key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    for index in order:
        if groups and lengths[groups[-1][0]] <= PADDING_LIMIT * lengths[index]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


@dataclass(frozen=True)
class Gather:
    """One padded batch: `source` [n, longest] pack positions, `real` [n, longest] bool.

    Padding points at the last token of its row: no real query sees a later key under a causal
    mask, so what stands there has no effect.
    """

    source: torch.Tensor
    real: torch.Tensor


@dataclass(frozen=True)
class PackPlan:
    """The batches of one pack, and `order` [tokens]: where each pack position is found in the
    real positions of all batches, concatenated."""

    batches: tuple[Gather, ...]
    order: torch.Tensor


@lru_cache(maxsize=16)
def plan_pack(boundaries: tuple[int, ...], device: torch.device) -> PackPlan:
    """The plan of a pack whose sequences lie between consecutive `boundaries` (from 0)."""
    lengths = [end - start for start, end in pairwise(boundaries)]
    batches = []
    for group in group_by_length(lengths):
        starts = torch.tensor([boundaries[index] for index in group], device=device)
        sizes = torch.tensor([lengths[index] for index in group], device=device)
        offsets = torch.arange(int(sizes.max()), device=device)
        real = offsets < sizes[:, None]
        source = starts[:, None] + torch.minimum(offsets, sizes[:, None] - 1)
        batches.append(Gather(source, real))
    found = [batch.source[batch.real] for batch in batches]
    positions = torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=device)
    return PackPlan(tuple(batches), torch.argsort(positions))
