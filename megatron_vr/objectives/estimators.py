"""Estimates of log π_θ(Y_x | x, z), the log-probability that the answer after a trace is correct.

All take and return one number per trace, shape [n], and compute in float64. They only weigh
traces, so no gradient passes through them.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from megatron_vr.objectives.checks import counts, log_quantity, needed, probabilities

Estimator = Literal["accuracy", "gml", "likelihood"]


def log_accuracy(accuracy: Tensor) -> Tensor:
    """log of the share of N sampled answers that the verifier accepts; −inf where none is.

    Unbiased before the log, with variance p(1 − p)/N for p = π_θ(Y_x|x,z).
    Raises ValueError for a share outside [0, 1].
    """
    return probabilities("accuracy", accuracy).log()


def log_geometric_mean_likelihood(answer_log_prob: Tensor, answer_length: Tensor) -> Tensor:
    """log GML = (1/|y'|) Σ_t log π_θ(y'_t | x, z, y'_<t).

    answer_log_prob: the sum over y', nats; answer_length: |y'| in tokens.
    Raises ValueError for an empty answer and for a NaN or +inf log-prob.
    """
    total = log_quantity("answer_log_prob", answer_log_prob)
    return total / counts("answer_length", answer_length)


def log_likelihood(answer_log_prob: Tensor, answer_count: Tensor) -> Tensor:
    """log L = log |Y_x| + log π_θ(y' | x, z).

    Unbiased before the log when y' is drawn uniformly from Y_x; its variance,
    |Y_x| Σ_y π(y)² − p², reaches (|Y_x| − 1) p² when one answer holds all of p.
    answer_log_prob: the sum over y', nats; answer_count: |Y_x|.
    Raises ValueError for a count below 1 and for a NaN or +inf log-prob.
    """
    total = log_quantity("answer_log_prob", answer_log_prob)
    return counts("answer_count", answer_count).log() + total


def log_estimate(
    estimator: Estimator,
    *,
    accuracy: Tensor | None = None,
    answer_log_prob: Tensor | None = None,
    answer_length: Tensor | None = None,
    answer_count: Tensor | None = None,
) -> Tensor:
    """The named estimate from its columns, each [n]; those it does not use may be None.

    Raises ValueError for an unknown name, a needed column that is None, and as the estimator does.
    """
    if estimator not in ("accuracy", "gml", "likelihood"):
        raise ValueError(f"estimator {estimator!r} is none of accuracy, gml, likelihood")
    if estimator == "accuracy":
        return log_accuracy(needed("accuracy", accuracy))
    log_prob = needed("answer_log_prob", answer_log_prob)
    if estimator == "gml":
        return log_geometric_mean_likelihood(log_prob, needed("answer_length", answer_length))
    return log_likelihood(log_prob, needed("answer_count", answer_count))
