"""What each trace weighs in the loss, and what the weighted loss is divided by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_vr.objectives.checks import check_groups, require
from megatron_vr.objectives.estimators import Estimator, log_accuracy, log_estimate
from megatron_vr.objectives.groups import (
    effective_sample_size,
    max_by_group,
    normalise_by_group,
    size_by_group,
)
from megatron_vr.objectives.ratios import Ratio, log_ratio

Normalise = Literal["question", "none"]
Column = Tensor | NDArray[Any] | Sequence[float]


@dataclass(frozen=True)
class TraceWeights:
    """The weights of n traces of a number of questions, and all they were made of.

    log_ratio, log_estimate, log_rho, weight: float64 [n], log ρ = log ratio + log estimate.
    ess: float64 [questions], the effective sample size of the weights; 0 without a weight.
    has_weight: bool [questions], whether any trace of the question has a positive weight.
    """

    log_ratio: Tensor
    log_estimate: Tensor
    log_rho: Tensor
    weight: Tensor
    ess: Tensor
    has_weight: Tensor


def trace_weights(
    *,
    estimator: Estimator,
    ratio: Ratio,
    normalise: Normalise,
    group: Tensor,
    groups: int,
    accuracy: Tensor | None = None,
    answer_log_prob: Tensor | None = None,
    answer_length: Tensor | None = None,
    answer_count: Tensor | None = None,
    policy_log_prob: Tensor | None = None,
    sampler_log_prob: Tensor | None = None,
    trace_length: Tensor | None = None,
) -> TraceWeights:
    """Each trace's weight, from ρ_k = [π_θ(z_k|x) / q_φ(z_k|x,y')] · π_θ(Y_x|x,z_k) as estimated.

    Columns are [n], one entry per trace; those not needed may be None. accuracy: the share of
    answers accepted; answer_log_prob: Σ_t log π_θ(y'_t|x,z); answer_length: |y'|; answer_count:
    |Y_x|; policy_log_prob: Σ_t log π_θ(z_t); sampler_log_prob: Σ_t log q_φ(z_t); trace_length: |z|.
    group [n] is each trace's question, of `groups`.

    normalise="question": the weight is ρ̃_k = ρ_k / Σ_j ρ_j, whose weighted gradient is that of
    log P_θ(Y_x|x). "none": it is ρ_k / K, K being the question's number of traces; the weighted
    gradient is that of P_θ(Y_x|x) itself.

    Raises ValueError naming the column, and the index where there is one, for a needed column that
    is None, NaN or +inf, an empty trace or answer, and, under "none", a ρ beyond float64.
    """
    estimate = log_estimate(
        estimator,
        accuracy=accuracy,
        answer_log_prob=answer_log_prob,
        answer_length=answer_length,
        answer_count=answer_count,
    )
    ratios = log_ratio(
        ratio,
        group,
        policy_log_prob=policy_log_prob,
        sampler_log_prob=sampler_log_prob,
        trace_length=trace_length,
    )
    check_groups(estimate, group, groups)
    check_groups(ratios, group, groups)
    if normalise not in ("question", "none"):
        raise ValueError(f"normalise {normalise!r} is none of question, none")
    log_rho = ratios + estimate
    weigh = normalise_by_group if normalise == "question" else _mean_weight
    weight = weigh(log_rho, group, groups)
    return TraceWeights(
        log_ratio=ratios,
        log_estimate=estimate,
        log_rho=log_rho,
        weight=weight,
        ess=effective_sample_size(weight, group, groups),
        has_weight=max_by_group(weight, group, groups) > 0,
    )


def forward_kl_weights(accuracy: Tensor, group: Tensor, groups: int) -> Tensor:
    """w̃_m = w_m / Σ_j w_j with w_m = π_θ(Y_x|x,z_m), for traces z_m drawn from π_θ(z|x).

    −Σ_m w̃_m ∇_φ log q_φ(z_m|x,y') then estimates the gradient of KL(P_θ(z|x,Y_x) ‖ q_φ).
    accuracy: [n] in [0, 1]; result float64 [n], all 0 for a question without a correct trace.
    """
    return normalise_by_group(log_accuracy(accuracy), group, groups)


def expected_weighted_tokens(
    weights: Column, token_counts: Column, batch_size: int, drawn: bool
) -> float:
    """C of the loss: a batch's weighted target tokens, on average over batches of `batch_size`.

    weights: w_i ≥ 0 of each example; token_counts: n_i, its target tokens.
    drawn=False, examples drawn evenly and weighing w_i: batch_size · mean_i(w_i n_i).
    drawn=True, examples drawn ∝ w_i and weighing 1: batch_size · Σ_i w_i n_i / Σ_i w_i.
    Raises ValueError for a negative or non-finite entry, unlike shapes, and where C would be 0.
    """
    weight = torch.as_tensor(weights, dtype=torch.float64)
    tokens = torch.as_tensor(token_counts, dtype=torch.float64)
    if weight.dim() != 1 or weight.shape != tokens.shape or batch_size < 1:
        raise ValueError(
            f"a weight and a token count per example: shapes {list(weight.shape)}, "
            f"{list(tokens.shape)}, batch size {batch_size}"
        )
    for name, column in (("weights", weight), ("token_counts", tokens)):
        require((column >= 0) & (column < torch.inf), name, column, "finite and at least 0")
    weighted = (weight * tokens).sum()
    if not weighted > 0:
        raise ValueError("no example has both a positive weight and a target token")
    return batch_size * float(weighted / (weight.sum() if drawn else len(weight)))


def _mean_weight(log_rho: Tensor, group: Tensor, groups: int) -> Tensor:
    """ρ_k / K [n]."""
    weight = log_rho.exp() / size_by_group(group, groups)[group]
    require(weight < torch.inf, "log_rho", log_rho, "within float64 (or normalise by question)")
    return weight
