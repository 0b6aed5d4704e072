"""One family: what each method weighs its traces with, and so each question.

Every method's loss is −Σ_i w_i log p(trace_i, answer_i), so all are lists of weights: float64 [n],
no gradient, for traces with `group` [n] naming their question, of `groups`. In expectation over
on-policy traces the gradient is Σ_x weight(x) · ∇KL(P_θ(z,y|x,Y_x) ‖ π_θ), the KL's first argument
held fixed, and `question_weight` is that weight as a function of p = P_θ(Y_x|x).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megatron_vr.objectives.checks import check_groups, probabilities, require
from megatron_vr.objectives.groups import max_by_group, size_by_group, sum_by_group

Method = Literal["sft", "rft", "binary-reward", "grpo", "forward-kl"]


def question_weight(method: Method, accuracy: Tensor) -> Tensor:
    """The weight, float64, a method gives a question that it solves with probability `accuracy`.

    sft: 1 (a reference is there whatever p is); rft and binary-reward: p; grpo: √(p/(1−p));
    forward-kl: 1. Where nothing can be learned, on-policy methods weigh 0: at p = 0 all of them,
    at p = 1 grpo, whose advantages vanish.
    Raises ValueError outside [0, 1] and for an unknown method.
    """
    p = probabilities("accuracy", accuracy)
    if method == "sft":
        return torch.ones_like(p)
    if method in ("rft", "binary-reward"):
        return p
    if method == "forward-kl":
        return (p > 0).to(p.dtype)
    if method == "grpo":
        return torch.where(p < 1, (p / (1 - p)).sqrt(), 0.0)
    raise ValueError(f"method {method!r} is none of sft, rft, binary-reward, grpo, forward-kl")


def sft_weights(group: Tensor, groups: int) -> Tensor:
    """1/K for each of a question's K reference traces: every question weighs 1."""
    return 1 / size_by_group(group, groups)[group]


def rft_weights(accuracy: Tensor, group: Tensor, groups: int) -> Tensor:
    """a_i / Σ_j a_j over the traces j of all questions: pooled, so a question weighs ∝ K p.

    accuracy: [n] in [0, 1]. All zero where no trace is correct.
    """
    reward = probabilities("accuracy", accuracy)
    check_groups(reward, group, groups)
    total = reward.sum()
    return reward / torch.where(total > 0, total, 1.0)


def binary_reward_weights(accuracy: Tensor, group: Tensor, groups: int) -> Tensor:
    """r_k / K: the policy gradient ∇E[r] = E[r ∇ log π], without a baseline.

    accuracy: the reward r [n], in [0, 1].
    """
    reward = probabilities("accuracy", accuracy)
    check_groups(reward, group, groups)
    return reward / size_by_group(group, groups)[group]


def grpo_weights(accuracy: Tensor, group: Tensor, groups: int) -> Tensor:
    """(r_k − mean r) / (K std r), mean and (population) std over the question's K traces.

    accuracy: the reward r [n], in [0, 1]. 0 where a question's rewards are all equal; there is no
    ε in the denominator. The advantage is of either sign; its expected gradient is that of the
    correct traces alone with weight r_k / (K std r), which sum to √(p/(1−p)) for the question.
    """
    reward = probabilities("accuracy", accuracy)
    size = size_by_group(group, groups)[group]
    centred = reward - sum_by_group(reward, group, groups)[group] / size
    variance = sum_by_group(centred.square(), group, groups)[group] / size
    highest = max_by_group(reward, group, groups)
    unequal = (highest > -max_by_group(-reward, group, groups))[group]
    return torch.where(unequal, centred / (size * variance.sqrt()), 0.0)


def reverse_kl_weights(log_rho: Tensor, group: Tensor, groups: int) -> Tensor:
    """(log ρ_k − mean_{j≠k} log ρ_j) / K, of either sign, for K traces z_k ~ q_φ.

    −Σ_k w_k ∇_φ log q_φ(z_k) is in expectation the gradient of KL(q_φ ‖ P_θ(z|x,Y_x)); the mean of
    the question's other traces (0 if K = 1) is a baseline. This is the objective that collapses.
    log ρ takes the "sequence" ratio. Raises ValueError naming the index of one that is not finite:
    at ρ = 0 the KL is infinite.
    """
    log_rho = log_rho.detach().to(torch.float64)
    require(log_rho.isfinite(), "log_rho", log_rho, "finite (the reverse KL is infinite at ρ = 0)")
    size = size_by_group(group, groups)[group]
    others = sum_by_group(log_rho, group, groups)[group] - log_rho
    return (log_rho - others / (size - 1).clamp(min=1)) / size


def reverse_kl_surrogate(
    sampler_log_prob: Tensor, log_rho: Tensor, group: Tensor, groups: int
) -> Tensor:
    """−Σ_k w_k log q_φ(z_k) with `reverse_kl_weights` w: its gradient, not its value, is the KL's.

    sampler_log_prob: log q_φ(z_k) [n] with gradient; log_rho [n], a constant. The scalar is a sum
    over questions.
    """
    weight = reverse_kl_weights(log_rho, group, groups)
    return -(weight * sampler_log_prob).sum()
