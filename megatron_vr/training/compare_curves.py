"""Two trainings of the same batches: whether their losses end at the same place. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHARE, FEWEST = 0.1, 10  # of all steps, those at the end that are compared


@dataclass(frozen=True)
class Verdict:
    """Means of the losses over the last `window` steps, and how far they are apart.

    `gap` is (tried − reference) / |reference|, None where a loss of the window is not finite;
    `largest` is what its absolute value may be. `lost` is the first step, from 1, at which the
    tried loss is not finite and the reference's is.
    """

    steps: int
    window: int
    reference: float | None
    tried: float | None
    gap: float | None
    largest: float
    lost: int | None

    @property
    def passed(self) -> bool:
        """Whether the tried training is as good as the reference, or as bad: a loss that is lower
        than it should be is as much of a departure as one that is higher."""
        return self.lost is None and self.gap is not None and abs(self.gap) <= self.largest


def compare(reference: Sequence[float], tried: Sequence[float], largest: float) -> Verdict:
    """Compare the losses of the same steps; the last tenth of them counts, and at least 10.

    Raises ValueError for curves that are empty or of unequal lengths.
    """
    if len(reference) != len(tried) or not reference:
        raise ValueError(f"curves of {len(reference)} and {len(tried)} steps do not compare")
    steps = len(reference)
    window = min(steps, max(FEWEST, math.ceil(steps * SHARE)))
    first, second = _mean(reference[-window:]), _mean(tried[-window:])
    pairs = zip(reference, tried, strict=True)
    lost = [step for step, (one, two) in enumerate(pairs, 1) if _is_lost(one, two)]
    return Verdict(
        steps=steps,
        window=window,
        reference=first,
        tried=second,
        gap=_gap(first, second),
        largest=largest,
        lost=lost[0] if lost else None,
    )


def trailing_gaps(reference: Sequence[float], tried: Sequence[float]) -> list[float | None]:
    """The gap of the means over the last 10 steps before and at each step; fewer at the start."""
    gaps = []
    for end in range(1, len(reference) + 1):
        first = max(0, end - FEWEST)
        gaps.append(_gap(_mean(reference[first:end]), _mean(tried[first:end])))
    return gaps


def _is_lost(reference: float, tried: float) -> bool:
    return math.isfinite(reference) and not math.isfinite(tried)


def _mean(losses: Sequence[float]) -> float | None:
    mean = math.fsum(losses) / len(losses) if all(map(math.isfinite, losses)) else math.nan
    return mean if math.isfinite(mean) else None


def _gap(reference: float | None, tried: float | None) -> float | None:
    """None also where the reference is 0: nothing is a share of it."""
    if not reference or tried is None:
        return None
    return (tried - reference) / abs(reference)
