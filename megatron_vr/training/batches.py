"""Which examples a step learns from, with which weights: pure, and a function of the step alone.

The loss of a step is `L = −(1/C) Σ_i w_i Σ_t log p(token_t)` over its draws i; `C`, fixed before
training, is the expected weighted number of target tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from megatron_vr.config.settings import TrainSettings
from megatron_vr.errors import DataError
from megatron_vr.objectives.weights import expected_weighted_tokens

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One example of a step and what its log-probs are multiplied by."""

    example: int
    loss_weight: float


@dataclass(frozen=True)
class BatchPlan:
    """All batches of a training.

    `weighting="loss"`: every pass shuffles the examples of positive weight; draws carry w_i.
    `weighting="draw"`: every pass draws as many examples with probability ∝ w_i; draws carry 1.
    The expected gradient is the same. A batch may straddle two passes.
    """

    steps: int
    normaliser: float
    batch_size: int
    stream: DrawStream

    def batch(self, step: int) -> list[Draw]:
        """The draws of step 0 ≤ `step` < `steps`."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of {self.steps}")
        first = step * self.batch_size
        return [self.stream[position] for position in range(first, first + self.batch_size)]


@dataclass(frozen=True)
class DrawStream:
    """The endless sequence of draws that batches are cut from.

    `candidates` are the examples of positive weight, `weights` their weights, in table order.
    """

    candidates: tuple[int, ...]
    weights: tuple[float, ...]
    drawn: bool
    seed: int

    def __getitem__(self, position: int) -> Draw:
        turn, place = divmod(position, len(self.candidates))
        chosen = _one_pass(self, turn)[place]
        weight = 1.0 if self.drawn else self.weights[chosen]
        return Draw(self.candidates[chosen], weight)


def make_batch_plan(
    weights: Sequence[float] | Floats,
    token_counts: Sequence[int] | Integers,
    lengths: Sequence[int] | Integers,
    settings: TrainSettings,
    seed: int,
) -> BatchPlan:
    """The plan for examples of these `weights`, target-token counts and total `lengths` (tokens).

    Raises DataError naming the row for a weight that is negative or not finite, an example without
    a target token or longer than `micro_batch_tokens`, and where no weight is positive.
    """
    weight = np.asarray(weights, dtype=np.float64)
    counts = np.asarray(token_counts, dtype=np.int64)
    _check(weight, counts, np.asarray(lengths, dtype=np.int64), settings.micro_batch_tokens)
    positive = np.flatnonzero(weight > 0)
    drawn = settings.weighting == "draw"
    normaliser = expected_weighted_tokens(
        weight[positive], counts[positive], settings.batch_size, drawn
    )
    stream = DrawStream(
        tuple(positive.tolist()), tuple(weight[positive].tolist()), drawn, seed
    )
    steps = settings.steps
    if steps is None:
        assert settings.epochs is not None
        steps = max(1, int(np.ceil(len(positive) * settings.epochs / settings.batch_size)))
    return BatchPlan(steps, float(normaliser), settings.batch_size, stream)
