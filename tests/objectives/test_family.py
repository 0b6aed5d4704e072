"""What each method's gradient is, exactly: the forward KL's, times a function of the accuracy.

Samples stand in exact proportion to the probabilities of a model whose probabilities are dyadic, so
that a method's sum over them is its expectation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_vr.objectives.family import (
    binary_reward_weights,
    grpo_weights,
    question_weight,
    reverse_kl_surrogate,
    reverse_kl_weights,
    rft_weights,
    sft_weights,
)
from megatron_vr.objectives.weights import forward_kl_weights
from tests.objectives.latent_model import (
    ANSWERS,
    CORRECT,
    LatentModel,
    assert_same,
    dyadic_model,
    gradients,
    random_model,
    tuple_probabilities,
    tuples,
)

TIMES = 1024  # 64 for traces times 16 for answers
GROUPED = {
    "rft": rft_weights,  # of one question: divided by Σ r, not K; see the test of two
    "binary-reward": binary_reward_weights,
    "grpo": grpo_weights,
    "forward-kl": forward_kl_weights,
}
ONE_QUESTION = torch.zeros(TIMES, dtype=torch.long)


def samples(model: LatentModel) -> tuple[Tensor, Tensor]:
    """log π_θ(z, y|x) and the reward of 1024 samples (z, y) in exact proportion, both [1024]."""
    log_prob = (model.log_policy()[:, None] + model.log_answers()).flatten()
    correct = [float(answer in CORRECT) for answer in ANSWERS]
    reward = torch.tensor(correct, dtype=torch.float64).repeat(15)
    times = (log_prob.exp() * TIMES).round().long()
    assert int(times.sum()) == TIMES
    return log_prob.repeat_interleave(times), reward.repeat_interleave(times)


def forward_kl_gradient(model: LatentModel) -> list[Tensor]:
    """∇_θ KL(P(z,y|x,Y_x) ‖ π_θ(z,y|x)), its first argument held fixed, by autograd."""
    correct = [ANSWERS.index(answer) for answer in CORRECT]
    log_prob = (model.log_policy()[:, None] + model.log_answers())[:, correct]
    posterior = (log_prob - model.log_evidence()).exp().detach()
    assert float(posterior.sum()) == pytest.approx(1)
    return gradients((posterior * (posterior.log() - log_prob)).sum(), model.theta)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("method", ["binary-reward", "grpo", "forward-kl"])
def test_a_methods_gradient_is_the_forward_kls_times_its_question_weight(
    method: Any, seed: int
) -> None:
    model = dyadic_model(seed)
    log_prob, reward = samples(model)
    weigh: Callable[[Tensor, Tensor, int], Tensor] = GROUPED[method]
    loss = -(weigh(reward, ONE_QUESTION, 1) * log_prob).sum()
    scale = question_weight(method, model.log_evidence().exp().detach())
    expected = [scale * gradient for gradient in forward_kl_gradient(model)]
    assert_same(gradients(loss, model.theta), expected, method)


def test_rft_over_two_questions_weighs_each_forward_kl_by_its_accuracy() -> None:
    models = [dyadic_model(0), dyadic_model(1)]
    drawn = [samples(model) for model in models]
    reward = torch.cat([reward for _, reward in drawn])
    group = torch.cat([ONE_QUESTION, ONE_QUESTION + 1])
    weight = rft_weights(reward, group, 2).split(TIMES)
    p = torch.stack([model.log_evidence().exp().detach() for model in models])
    assert float((p[0] - p[1]).abs()) > 0.01, "two questions of different difficulty"
    share = question_weight("rft", p) / p.sum()
    for model, (log_prob, _), own, scale in zip(models, drawn, weight, share, strict=True):
        expected = [scale * gradient for gradient in forward_kl_gradient(model)]
        assert_same(gradients(-(own * log_prob).sum(), model.theta), expected, "RFT")


def test_binary_reward_rl_has_the_gradient_of_the_accuracy_itself() -> None:
    model = dyadic_model(3)
    log_prob, reward = samples(model)
    value = (binary_reward_weights(reward, ONE_QUESTION, 1) * log_prob).sum()
    expected = gradients(model.log_evidence().exp(), model.theta)
    assert_same(gradients(value, model.theta), expected, "∇ P(Y_x|x)")


def test_grpos_gradient_is_that_of_the_correct_samples_with_weights_summing_to_its_weight() -> None:
    model = dyadic_model(4)
    log_prob, reward = samples(model)
    p = reward.mean()
    correct_alone = reward / (TIMES * (p * (1 - p)).sqrt())
    assert float(correct_alone.sum()) == pytest.approx(float((p / (1 - p)).sqrt()))
    advantage = grpo_weights(reward, ONE_QUESTION, 1)
    expected = gradients((correct_alone * log_prob).sum(), model.theta)
    assert_same(gradients((advantage * log_prob).sum(), model.theta), expected, "GRPO")


def test_question_weights_over_the_range_of_accuracies() -> None:
    p = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = {
        method: question_weight(method, p).tolist()  # type: ignore[arg-type]
        for method in ("sft", "rft", "binary-reward", "grpo", "forward-kl")
    }
    assert found["sft"] == [1.0] * 5
    assert found["rft"] == found["binary-reward"] == p.tolist()
    assert found["grpo"] == pytest.approx([0.0, 0.5, 1.0, 2.0, 0.0])
    assert found["forward-kl"] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_the_weights_of_scattered_traces() -> None:
    group = torch.tensor([0, 1, 0, 1, 0, 0])
    reward = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    assert sft_weights(group, 2).tolist() == [0.25, 0.5, 0.25, 0.5, 0.25, 0.25]
    third = pytest.approx([1 / 3, 1 / 3, 0, 0, 0, 1 / 3])
    assert rft_weights(reward, group, 2).tolist() == third
    assert binary_reward_weights(reward, group, 2).tolist() == [0.25, 0.5, 0, 0, 0, 0.25]
    assert grpo_weights(reward, group, 2).tolist() == [0.25, 0.5, -0.25, -0.5, -0.25, 0.25]


@pytest.mark.parametrize("reward", [0.0, 0.1, 1.0])
def test_grpo_learns_nothing_from_a_question_whose_rewards_are_equal(reward: float) -> None:
    group = torch.tensor([0, 0, 0, 1, 1])
    rewards = torch.tensor([reward, reward, reward, 0.0, 1.0])
    assert grpo_weights(rewards, group, 2).tolist() == [0.0, 0.0, 0.0, -0.5, 0.5]


def test_no_correct_trace_anywhere_gives_zero_weights() -> None:
    for weigh in GROUPED.values():
        assert weigh(torch.zeros(3), torch.tensor([0, 1, 0]), 2).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_surrogates_gradient_is_the_reverse_kls(size: int) -> None:
    model = random_model(size)
    chosen = tuples(size)
    group = torch.arange(len(chosen)).repeat_interleave(size)
    weight = reverse_kl_weights(model.log_rho()[chosen].flatten(), group, len(chosen))
    probability = tuple_probabilities(model.log_sampler(), size).detach()
    log_sampler = model.log_sampler()
    surrogate = -(probability[:, None] * weight.reshape(-1, size) * log_sampler[chosen]).sum()
    reverse_kl = (log_sampler.exp() * (log_sampler - model.posterior().log())).sum()
    expected = gradients(reverse_kl, [model.sampler])
    assert_same(gradients(surrogate, [model.sampler]), expected, f"reverse KL, K = {size}")


def test_the_surrogate_is_the_weighted_likelihood_and_holds_log_rho_constant() -> None:
    log_sampler = torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64, requires_grad=True)
    log_rho = -log_sampler + torch.tensor([0.0, 1.0, 5.0])
    group = torch.tensor([0, 0, 1])
    (gradient,) = torch.autograd.grad(
        reverse_kl_surrogate(log_sampler, log_rho, group, 2), [log_sampler]
    )
    assert (
        gradient.tolist() == (-reverse_kl_weights(log_rho, group, 2)).tolist() == [1.0, -1.0, -8.0]
    )


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
def test_the_reverse_kl_is_infinite_where_a_trace_has_no_weight(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"log_rho\[1\] is {bad}; .*reverse KL is infinite"):
        reverse_kl_weights(torch.tensor([0.0, bad]), torch.tensor([0, 0]), 1)


def test_an_unknown_method_or_an_impossible_accuracy_is_refused() -> None:
    with pytest.raises(ValueError, match="method 'ppo' is none of"):
        question_weight("ppo", torch.tensor([0.5]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"accuracy\[1\] is 1\.5"):
        question_weight("rft", torch.tensor([0.5, 1.5]))
