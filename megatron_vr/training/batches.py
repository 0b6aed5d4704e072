"""Which examples a step learns from, with which weights: pure, and a function of the step alone.

The loss of a step is `L = −(1/C) Σ_i w_i Σ_t log p(token_t)` over its draws i; `C`, fixed before
training, is the expected weighted number of target tokens of a step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from megatron_vr.config.settings import TrainSettings
from megatron_vr.errors import DataError
from megatron_vr.objectives.groups import effective_sample_size
from megatron_vr.objectives.weights import expected_weighted_tokens

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """One example of a step and what its log-probs are multiplied by."""

    example: int
    loss_weight: float


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """All batches of a training, cut from an endless sequence of passes over the examples.

    `weighting="loss"`: a pass shuffles the examples of positive weight; draws carry w_i.
    `weighting="draw"`: a pass draws as many examples with probability ∝ w_i; draws carry 1.
    The expected gradient is the same. A batch may straddle two passes.

    `candidates` [n] are the examples of positive weight that fit, in table order, `weights` [n]
    theirs; `dropped` examples did not fit into a micro-batch.
    """

    steps: int
    batch_size: int
    normaliser: float
    candidates: Integers
    weights: Floats
    drawn: bool
    seed: int
    dropped: int = 0

    def batch(self, step: int) -> list[Draw]:
        """The draws of step 0 ≤ `step` < `steps`; the same list whenever it is asked for."""
        if not 0 <= step < self.steps:
            raise IndexError(f"step {step} of a plan of {self.steps}")
        size = len(self.candidates)
        first = step * self.batch_size
        last = first + self.batch_size
        passes = range(first // size, -(-last // size))
        flat = np.concatenate([self._one_pass(number) for number in passes])
        chosen = flat[first - passes.start * size : last - passes.start * size]
        weights = np.ones(len(chosen)) if self.drawn else self.weights[chosen]
        examples = self.candidates[chosen].tolist()
        return [Draw(*pair) for pair in zip(examples, weights.tolist(), strict=True)]

    def _one_pass(self, number: int) -> Integers:
        """Positions [n] among the candidates, in the order of pass `number`."""
        generator = np.random.default_rng([self.seed, number])
        size = len(self.candidates)
        if self.drawn:
            chosen = systematic_resample(self.weights, size, generator.random())
        else:
            chosen = np.arange(size)
        return generator.permutation(chosen)


def make_batch_plan(
    weights: ArrayLike,
    token_counts: ArrayLike,
    lengths: ArrayLike,
    settings: TrainSettings,
    seed: int,
) -> BatchPlan:
    """The plan for examples of these `weights`, target-token counts and total `lengths` (tokens).

    Raises DataError naming the row for a weight that is negative or not finite, an example without
    a target or (unless `too_long` is "drop") longer than `micro_batch_tokens`, and where nothing is
    left to learn from.
    """
    weight = np.asarray(weights, dtype=np.float64)
    counts = np.asarray(token_counts, dtype=np.int64)
    _check_weights(weight)
    positive = np.flatnonzero(weight > 0)
    _check_targets(positive, counts)
    fits = np.asarray(lengths)[positive] <= settings.micro_batch_tokens
    _check_lengths(positive[~fits], np.asarray(lengths), settings, len(positive))
    positive = positive[fits]
    drawn = settings.weighting == "draw"
    normaliser = expected_weighted_tokens(
        weight[positive], counts[positive], settings.batch_size, drawn
    )
    return BatchPlan(
        steps=_steps(settings, len(positive)),
        batch_size=settings.batch_size,
        normaliser=float(normaliser),
        candidates=positive,
        weights=weight[positive],
        drawn=drawn,
        seed=seed,
        dropped=int((~fits).sum()),
    )


def systematic_resample(weights: Floats, count: int, offset: float) -> Integers:
    """`count` indices drawn with probability ∝ `weights` [n] > 0, ascending.

    One uniform `offset` in [0, 1) places a comb of `count` equally spaced teeth on the cumulative
    weights: index i comes floor or ceil of count·w_i/Σw times, and that in expectation.
    """
    edges = np.cumsum(weights)
    teeth = (offset + np.arange(count)) * (edges[-1] / count)
    # Rounding may put the last tooth on the last edge.
    return np.minimum(np.searchsorted(edges, teeth, side="right"), len(weights) - 1)


def batch_sample_size(draws: Sequence[Draw]) -> float:
    """The effective sample size of a batch over its distinct examples; a repeated draw adds up."""
    _, owner = np.unique([draw.example for draw in draws], return_inverse=True)
    totals = np.bincount(owner, [draw.loss_weight for draw in draws])
    one_group = torch.zeros(len(totals), dtype=torch.long)
    return float(effective_sample_size(torch.from_numpy(totals), one_group, 1))


def _steps(settings: TrainSettings, candidates: int) -> int:
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None, "TrainSettings has exactly one of steps and epochs"
    return math.ceil(candidates * settings.epochs / settings.batch_size)


def _check_weights(weights: Floats) -> None:
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"row {row} of the examples has weight {weights[row]}; weights are finite and >= 0 "
            f"({len(wrong)} rows are not)"
        )
    if not (weights > 0).any():
        raise DataError(
            f"none of the {len(weights)} examples has a positive weight: nothing to learn from"
        )


def _check_targets(rows: Integers, counts: Integers) -> None:
    without = rows[counts[rows] < 1]
    if len(without):
        raise DataError(
            f"row {without[0]} of the examples has no target token; set its weight to 0"
        )


def _check_lengths(
    too_long: Integers, lengths: Integers, settings: TrainSettings, candidates: int
) -> None:
    budget = settings.micro_batch_tokens
    if not len(too_long):
        return
    row, longest = too_long[0], lengths[too_long].max()
    if settings.too_long == "error":
        raise DataError(
            f"row {row} of the examples has {lengths[row]} tokens, more than "
            f"micro_batch_tokens={budget}; raise micro_batch_tokens to at least {longest}, or set "
            f"too_long: drop ({len(too_long)} examples are too long)"
        )
    if len(too_long) == candidates:
        raise DataError(
            f"all {candidates} examples are longer than micro_batch_tokens={budget}: nothing is "
            f"left to learn from; raise it (the longest has {longest} tokens)"
        )
