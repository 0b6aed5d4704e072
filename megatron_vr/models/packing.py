"""Which parts of a pack share one attention call. Pure decisions and their index tensors.

A segment is a run of queries that attends to runs of keys, the last of which ends with the
segment's own tokens: its last query sees all keys, the query before it one fewer, and so on
(a causal mask aligned at the lower right). A whole sequence is a segment whose keys are itself;
a context-parallel rank's chunk has the keys of everything before it too; a trace that shares its
prompt with others has the prompt's keys and its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]

# A padded batch may compute this many positions per real token before it is worth splitting.
PADDING_LIMIT = 2.0


@dataclass(frozen=True)
class Segment:
    """`count` queries from position `start` of a rank's places, and the [first, last) ranges of
    places their keys are found at."""

    start: int
    count: int
    keys: tuple[tuple[int, int], ...]

    @property
    def key_count(self) -> int:
        """How many keys the last query sees."""
        return sum(last - first for first, last in self.keys)


def whole_sequences(boundaries: Sequence[int]) -> tuple[Segment, ...]:
    """The segments of a pack whose sequences lie between consecutive `boundaries` (from 0)."""
    return tuple(
        Segment(start, end - start, ((start, end),)) for start, end in pairwise(boundaries)
    )


def context_share(boundaries: Sequence[int], ranks: int, rank: int) -> tuple[Segment, ...]:
    """The segments of context-parallel rank `rank` of `ranks`.

    It has chunks `rank` and `2·ranks − 1 − rank` of each sequence, in this order; keys are counted
    in the whole pack.
    """
    segments, place = [], 0
    for start, end in pairwise(boundaries):
        chunk = (end - start) // (2 * ranks)
        for number in (rank, 2 * ranks - 1 - rank):
            segments.append(Segment(place, chunk, ((start, start + (number + 1) * chunk),)))
            place += chunk
    return tuple(segments)


@lru_cache(maxsize=16)
def gathered_order(boundaries: tuple[int, ...], ranks: int) -> Integers:
    """For each place of the pack, where it stands when the ranks' shares follow each other."""
    shares = [context_share(boundaries, ranks, rank) for rank in range(ranks)]
    ends = [(segment.keys[0][1], segment.count) for share in shares for segment in share]
    places = np.concatenate([np.arange(end - count, end) for end, count in ends])
    return np.argsort(places)


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
    """One padded batch of n segments.

    `queries` [n, longest] and `keys` [n, most keys] are places, `real` [number of queries] where
    in the flattened batch the queries are that are no padding. `seen` [n, 1, longest, most keys]
    bool is the mask, None where every segment's keys are its own tokens (a plain causal mask).
    Padding repeats a segment's last place: no real query sees a later key, so what stands there
    has no effect.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    real: torch.Tensor
    seen: torch.Tensor | None


@dataclass(frozen=True)
class PackPlan:
    """The batches of one pack, and `order` [places]: where each place is found in the real
    queries of all batches, concatenated; None where the one batch is the pack as it stands."""

    batches: tuple[Gather, ...]
    order: torch.Tensor | None


@lru_cache(maxsize=16)
def plan_pack(segments: tuple[Segment, ...], device: torch.device) -> PackPlan:
    """The attention calls for `segments`, which together hold every place once."""
    square = [segment for segment in segments if segment.count == segment.key_count]
    rest = [segment for segment in segments if segment.count != segment.key_count]
    batches = [
        _gather(group, device, causal=True) for group in _groups(square, lambda s: s.count)
    ] + [
        _gather(group, device, causal=False)
        for alike in _groups(rest, lambda s: s.count)
        for group in _groups(alike, lambda s: s.key_count)
    ]
    found = [batch.queries.flatten()[batch.real] for batch in batches]
    places = torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=device)
    return PackPlan(tuple(batches), None if _as_it_stands(batches) else torch.argsort(places))


def _as_it_stands(batches: Sequence[Gather]) -> bool:
    """Whether there is one batch, of whole sequences of one length, one after the other."""
    if len(batches) != 1 or batches[0].seen is not None:
        return False
    places = batches[0].queries.flatten()
    return len(batches[0].real) == len(places) and bool((places[1:] > places[:-1]).all())


def _groups(segments: Sequence[Segment], length: Callable[[Segment], int]) -> list[list[Segment]]:
    grouped = group_by_length([length(segment) for segment in segments])
    return [[segments[index] for index in group] for group in grouped]


def _gather(segments: Sequence[Segment], device: torch.device, *, causal: bool) -> Gather:
    queries = [np.arange(s.start, s.start + s.count) for s in segments]
    keys = [np.concatenate([np.arange(*span) for span in s.keys]) for s in segments]
    counts, key_counts = _lengths(queries, device), _lengths(keys, device)
    query = torch.arange(int(counts.max()), device=device)
    real = (query < counts[:, None]).flatten().nonzero()[:, 0]
    padded = Gather(_padded(queries, device), _padded(keys, device), real, None)
    if causal:
        return padded
    # Query i of n stands at place (keys − n + i) of its own keys.
    last_seen = torch.minimum(query, counts[:, None] - 1) + (key_counts - counts)[:, None]
    key = torch.arange(padded.keys.shape[1], device=device)
    return replace(padded, seen=(key <= last_seen[:, :, None])[:, None])


def _lengths(rows: Sequence[Integers], device: torch.device) -> torch.Tensor:
    return torch.tensor([len(row) for row in rows], device=device)


def _padded(rows: Sequence[Integers], device: torch.device) -> torch.Tensor:
    longest = max(len(row) for row in rows)
    padded = np.stack([np.pad(row, (0, longest - len(row)), mode="edge") for row in rows])
    return torch.from_numpy(padded).to(device)
