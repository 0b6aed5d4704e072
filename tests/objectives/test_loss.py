"""The weighted negative log-likelihood."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_vr.objectives.loss import weighted_negative_log_likelihood


def test_the_loss_is_the_weighted_sum_over_the_constant_and_its_gradient_minus_w_over_c() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -4.0], requires_grad=True)
    loss = weighted_negative_log_likelihood(log_probs, torch.tensor([0.5, 0.5, 2.0]), 4.0)
    assert loss.item() == (0.5 * 1 + 0.5 * 2 + 2 * 4) / 4
    loss.backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-0.125, -0.125, -0.5]


def test_the_losses_of_micro_batches_add_up_to_the_batchs() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = -torch.rand(50, generator=generator, dtype=torch.float64)
    weights = torch.rand(50, generator=generator, dtype=torch.float64)
    whole = weighted_negative_log_likelihood(log_probs, weights, 7.0)
    parts = zip(log_probs.split([1, 30, 0, 19]), weights.split([1, 30, 0, 19]), strict=True)
    torch.testing.assert_close(
        sum(weighted_negative_log_likelihood(p, w, 7.0) for p, w in parts), whole
    )


def test_a_token_of_weight_zero_adds_nothing_to_the_loss_or_the_gradient() -> None:
    log_probs = torch.tensor([-1.0, -math.inf], requires_grad=True)
    loss = weighted_negative_log_likelihood(log_probs, torch.tensor([1.0, 0.0]), 1.0)
    loss.backward()
    assert loss.item() == 1.0
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-1.0, 0.0]


def test_an_impossible_token_that_counts_shows() -> None:
    loss = weighted_negative_log_likelihood(torch.tensor([-math.inf]), torch.ones(1), 1.0)
    assert loss.item() == math.inf


def test_bfloat16_log_probs_are_summed_in_float32() -> None:
    log_probs = torch.full((1000,), -1.0, dtype=torch.bfloat16)
    loss = weighted_negative_log_likelihood(log_probs, torch.ones(1000), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == 1000.0


def test_no_gradient_reaches_the_weights() -> None:
    weights = torch.ones(2, requires_grad=True)
    log_probs = torch.zeros(2, requires_grad=True)
    weighted_negative_log_likelihood(log_probs, weights, 1.0).backward()
    assert weights.grad is None


@pytest.mark.parametrize("normaliser", [0.0, -1.0, math.nan, math.inf])
def test_a_normaliser_must_be_positive_and_finite(normaliser: float) -> None:
    with pytest.raises(ValueError, match=f"normaliser is {normaliser}"):
        weighted_negative_log_likelihood(torch.zeros(1), torch.ones(1), normaliser)


def test_there_is_a_weight_per_token() -> None:
    with pytest.raises(ValueError, match="a weight per token"):
        weighted_negative_log_likelihood(torch.zeros(2), torch.ones(1), 1.0)
