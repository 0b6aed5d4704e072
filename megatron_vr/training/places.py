"""What stands at each place of a pack: pure index arithmetic.

Sequences follow each other whole, or, where several begin with the same prompt, the prompt stands
once and each of them goes on from it:

    whole    x1 x2 x3 a b c | x1 x2 x3 d e        shared   x1 x2 | x3 a b c | x3 d e

The prompt's last token stands with every sequence: there each predicts its own first target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

from megatron_vr.config.padding import pack_multiple, sequence_multiple
from megatron_vr.models.packing import Segment

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PackShape:
    """What the ranks that share a sequence demand of its length.

    Each of `context` ranks takes two chunks of every sequence; each of `sequence_parallel` ranks
    an equal share of what is then on a rank, in a multiple of `align` places. Padding follows the
    last token of a sequence, where under a causal mask nothing sees it.
    """

    context: int = 1
    context_rank: int = 0
    sequence_parallel: int = 1
    align: int = 1

    @property
    def multiple(self) -> int:
        """What the places of every sequence are padded to a multiple of."""
        return sequence_multiple(self.context)

    @property
    def pack_multiple(self) -> int:
        """What the places of a whole pack are padded to a multiple of."""
        return pack_multiple(self.context, self.sequence_parallel, self.align)

    def rounded(self, places: Integers) -> Integers:
        """The places [n] that each sequence takes by itself."""
        return -(-places // self.multiple) * self.multiple

    def padded(self, places: Integers) -> Integers:
        """The places [n ≥ 1] of each sequence of a pack with its padding."""
        padded = self.rounded(places)
        padded[-1] += -int(padded.sum()) % self.pack_multiple
        return padded

    @property
    def unit(self) -> int:
        """What the places of a pack on one context-parallel rank are a multiple of."""
        return self.sequence_parallel * self.align

    def total(self, places: Integers, saved: int) -> int:
        """The places that a pack of sequences of `places` [n ≥ 0] takes with all padding, `saved`
        of which shared prompts spare."""
        if not len(places):
            return self.pack_multiple
        if not saved:
            return int(self.padded(places).sum())
        used = int(places.sum()) - saved
        return used + -used % self.unit

    def share(self, boundaries: Integers) -> Integers:
        """The pack positions of this context-parallel rank, ascending within a sequence.

        Of c ranks, rank r has chunks r and 2c − 1 − r of each sequence: together they cost every
        rank the same causal attention. `boundaries` [n + 1] are the sequences' ends from 0.
        """
        if self.context == 1:
            return np.arange(boundaries[-1])
        chosen = []
        for start, end in pairwise(boundaries):
            chunk = (end - start) // (2 * self.context)
            for number in (self.context_rank, 2 * self.context - 1 - self.context_rank):
                chosen.append(np.arange(start + number * chunk, start + (number + 1) * chunk))
        return np.concatenate(chosen)


@dataclass(frozen=True)
class Places:
    """Of each place on this rank, `owners` [places] is the pack's sequence whose token stands
    there and `positions` [places] its index in that sequence, at or past the end for padding.

    `boundaries` are the ends of the pack's sequences, over all ranks. With shared prompts they
    count as one sequence, and `segments` say who attends to whom.
    """

    owners: Integers
    positions: Integers
    boundaries: Integers
    segments: tuple[Segment, ...] = ()


def whole(sizes: Integers, shape: PackShape) -> Places:
    """Sequences of `sizes` [n ≥ 1] places, one after the other."""
    padded = shape.padded(sizes)
    boundaries = np.concatenate([[0], np.cumsum(padded)])
    share = shape.share(boundaries)
    owners = np.repeat(np.arange(len(padded)), padded)[share]
    return Places(owners, share - boundaries[owners], boundaries)


def shared(
    sizes: Integers, prompts: Integers, groups: Sequence[int] | Integers, shape: PackShape
) -> Places:
    """Sequences of `sizes` [n] places of which the first `prompts` [n] are the same for all of one
    group in `groups` [n]. Raises ValueError with context parallelism, which splits sequences."""
    if shape.context > 1:
        raise ValueError("prompts cannot be shared with context parallelism")
    owners, positions, segments, place = [], [], [], 0
    order = sorted(range(len(sizes)), key=lambda i: groups[i])
    for _, members in groupby(order, key=lambda i: groups[i]):
        same = list(members)
        length = int(prompts[same[0]]) if len(same) > 1 else 0
        prompt = (place, place + length)
        pieces = [(same[0], 0, length)] if length else []
        pieces += [(member, length, int(sizes[member])) for member in same]
        for owner, first, last in pieces:
            own = (place, place + last - first)
            before = (prompt,) if first else ()
            segments.append(Segment(place, last - first, (*before, own)))
            owners.append(np.full(last - first, owner))
            positions.append(np.arange(first, last))
            place = own[1]
    padding = -place % shape.unit
    if padding:
        owners.append(np.full(padding, owners[-1][-1]))
        positions.append(np.full(padding, sizes[owners[-1][-1]]))
        segments.append(Segment(place, padding, ((place, place + padding),)))
    boundaries = np.array([0, place + padding])
    return Places(np.concatenate(owners), np.concatenate(positions), boundaries, tuple(segments))
