"""How far two computations of the same log-probs are apart, over any number of tokens. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# |difference| in nats, in bins of a hundredth of a decade: a percentile is known to 2.3 %.
SMALLEST, LARGEST, PER_DECADE = -10, 4, 100
BINS = (LARGEST - SMALLEST) * PER_DECADE


@dataclass(frozen=True)
class Gaps:
    """Absolute differences of log-probs, in nats per token.

    `counts` [BINS] of their decimal logarithm (what is smaller or larger goes to the ends),
    `total` their sum, `largest` the largest.
    """

    counts: NDArray[np.int64]
    total: float
    largest: float

    @staticmethod
    def of(one: ArrayLike, other: ArrayLike) -> Gaps:
        """The differences of two equally long rows of log-probs; one that is not finite is ∞."""
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = np.abs(np.asarray(one, np.float64) - np.asarray(other, np.float64))
            gaps = np.where(np.isnan(gaps), np.inf, gaps)
            place = np.floor((np.log10(gaps) - SMALLEST) * PER_DECADE)
        counts = np.bincount(np.clip(place, 0, BINS - 1).astype(np.int64), minlength=BINS)
        return Gaps(counts, float(gaps.sum()), float(gaps.max(initial=0.0)))

    @staticmethod
    def joined(several: Iterable[Gaps]) -> Gaps:
        """All of them together."""
        found = [Gaps(np.zeros(BINS, dtype=np.int64), 0.0, 0.0), *several]
        return Gaps(
            np.sum([gaps.counts for gaps in found], axis=0),
            sum(gaps.total for gaps in found),
            max(gaps.largest for gaps in found),
        )

    @property
    def tokens(self) -> int:
        """How many differences there are."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Nats per token; 0 for no token."""
        return self.total / max(1, self.tokens)

    def percentile(self, share: float) -> float:
        """The upper edge of the bin below which `share` per cent of the differences are, at most
        the largest; 0 for no token."""
        if not self.tokens:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), share / 100 * self.tokens))
        edge = 10.0 ** (SMALLEST + (min(place, BINS - 1) + 1) / PER_DECADE)
        return float(min(edge, self.largest))

    def to_json(self) -> dict[str, object]:
        """What `from_json` reads: the filled bins only."""
        filled = {str(place): int(self.counts[place]) for place in np.flatnonzero(self.counts)}
        return {"counts": filled, "total": self.total, "largest": self.largest}

    @staticmethod
    def from_json(content: dict[str, object]) -> Gaps:
        """The differences that `to_json` told."""
        counts = np.zeros(BINS, dtype=np.int64)
        filled, total, largest = content["counts"], content["total"], content["largest"]
        assert isinstance(filled, dict) and isinstance(total, float) and isinstance(largest, float)
        for place, count in filled.items():
            counts[int(place)] = count
        return Gaps(counts, total, largest)
