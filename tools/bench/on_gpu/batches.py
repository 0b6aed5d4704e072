"""Global batches of random tokens: equal lengths, and lengths as traces have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from megatron_vr.training.batches import Draw
from megatron_vr.training.micro_batch import TokenTable
from tools.bench.on_gpu.place import Place

# Places of a micro-batch; a sequence of n tokens takes n − 1.
BUDGET = 32768
TINY_BUDGET = 256

# The lengths of traces: log-normal with this mean; two micro-batches of them.
TRACE_MEAN, TRACE_SIGMA, TRACE_PACKS = 6000, 0.8, 2

LENGTHS: Final = ("8192", "traces", "32768")


def budget(place: Place) -> int:
    """Places of a micro-batch here."""
    return place.sized(BUDGET, TINY_BUDGET)


def places_of(name: str, place: Place) -> list[int]:
    """The places of each sequence of the batch called `name`."""
    whole = budget(place)
    if name == "traces":
        return list(_traces(whole))
    each = int(name) * whole // BUDGET
    return [each] * (whole // each)


def _traces(whole: int) -> Iterator[int]:
    """Draws that fill each pack until one does not fit; at most a pack long, as settings ask."""
    random = np.random.default_rng(0)
    location = np.log(TRACE_MEAN * whole / BUDGET) - TRACE_SIGMA**2 / 2
    for _ in range(TRACE_PACKS):
        room = whole
        while True:
            length = int(np.clip(random.lognormal(location, TRACE_SIGMA), 8, whole))
            if length > room:
                break
            room -= length
            yield length


def random_table(places: Sequence[int], vocabulary: int) -> TokenTable:
    """Sequences of random tokens that take so many places; all but the first eighth of each are
    targets."""
    lengths = np.array(places, dtype=np.int64) + 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.random.default_rng(1).integers(0, vocabulary, offsets[-1], dtype=np.int32)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    return TokenTable(tokens, place >= np.repeat(np.maximum(1, lengths // 8), lengths), offsets)


def draws(table: TokenTable) -> list[Draw]:
    """Every sequence once, with unequal weights."""
    random = np.random.default_rng(2)
    weights = random.uniform(0.1, 1.0, len(table.places))
    return [Draw(index, float(weight)) for index, weight in enumerate(weights)]


def targets_of(table: TokenTable) -> list[int]:
    """Targets of each sequence."""
    return [
        int(table.is_target[first:last].sum())
        for first, last in zip(table.offsets, table.offsets[1:], strict=False)
    ]
