"""The bounds of log P_θ(Y_x|x) and their gradient, against enumeration of every tuple of traces."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_vr.objectives.bounds import elbo, iwae, iwae_curve
from megatron_vr.objectives.groups import normalise_by_group
from tests.objectives.latent_model import (
    LatentModel,
    assert_same,
    gradients,
    random_model,
    tuple_probabilities,
    tuples,
)

INF = math.inf


def expected_iwae(model: LatentModel, size: int) -> Tensor:
    """IWAE_K by enumeration, written without the package: Σ_tuples q(tuple) log mean ρ."""
    rho = model.log_rho().exp()[tuples(size)]
    return (tuple_probabilities(model.log_sampler(), size) * rho.mean(dim=1).log()).sum()


@pytest.mark.parametrize("seed", range(3))
def test_elbo_is_iwae_1_and_iwae_grows_with_k_below_the_log_evidence(seed: int) -> None:
    model = random_model(seed)
    log_rho = model.log_rho()
    bounds = [
        (tuple_probabilities(model.log_sampler(), k) * iwae(log_rho[tuples(k)])).sum().item()
        for k in (1, 2, 3)
    ]
    pairs = tuples(2)
    elbo_of_pairs = (tuple_probabilities(model.log_sampler(), 2) * elbo(log_rho[pairs])).sum()
    assert elbo_of_pairs.item() == pytest.approx(bounds[0], abs=1e-12)
    chain = [*bounds, model.log_evidence().item()]
    assert all(low < high for low, high in pairwise(chain)), chain
    for k, bound in zip((1, 2, 3), bounds, strict=True):
        assert bound == pytest.approx(expected_iwae(model, k).item(), abs=1e-12)


def test_the_gap_of_the_elbo_is_the_kl_from_the_sampler_to_the_posterior() -> None:
    model = random_model(1)
    q = model.log_sampler().exp()
    bound = (q * elbo(model.log_rho()[:, None])).sum()
    kl = (q * (model.log_sampler() - model.posterior().log())).sum()
    torch.testing.assert_close(model.log_evidence() - bound, kl, rtol=0, atol=1e-12)


def test_with_the_posterior_as_sampler_every_bound_is_the_log_evidence_for_any_traces() -> None:
    model = random_model(2)
    log_rho = (model.log_joint() - model.posterior().log())[tuples(2)]
    for bound in (elbo(log_rho), iwae(log_rho)):
        torch.testing.assert_close(bound, model.log_evidence().expand(225))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_normalised_weights_give_the_gradient_of_iwae(size: int) -> None:
    model = random_model(size)
    chosen = tuples(size)
    group = torch.arange(len(chosen)).repeat_interleave(size)
    weight = normalise_by_group(model.log_rho()[chosen].flatten(), group, len(chosen))
    probability = tuple_probabilities(model.log_sampler(), size).detach()
    log_joint = model.log_joint()[chosen]
    surrogate = (probability[:, None] * weight.reshape(-1, size) * log_joint).sum()
    expected = gradients(expected_iwae(model, size), model.theta)
    assert_same(gradients(surrogate, model.theta), expected, f"gradient of IWAE_{size}")
    by_bound = (probability * iwae(model.log_rho()[chosen])).sum()
    assert_same(gradients(by_bound, model.theta), expected, "autograd through iwae()")


@pytest.mark.parametrize("max_subsets", [256, 1], ids=["all subsets", "one random subset"])
def test_the_curve_from_three_traces_is_unbiased_for_every_k(max_subsets: int) -> None:
    model = random_model(4)
    curve = iwae_curve(model.log_rho()[tuples(3)], max_subsets=max_subsets)
    estimate = tuple_probabilities(model.log_sampler(), 3) @ curve
    exact = torch.stack([expected_iwae(model, k) for k in (1, 2, 3)])
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-12)


LOG_WEIGHTS = st.lists(st.one_of(st.floats(-1e4, 1e4), st.just(-INF)), min_size=1, max_size=7).map(
    lambda row: torch.tensor([row], dtype=torch.float64)
)


@given(LOG_WEIGHTS)
@settings(max_examples=40, deadline=None)
def test_the_curve_rises_from_the_elbo_to_the_bound_of_all_traces(log_rho: Tensor) -> None:
    curve = iwae_curve(log_rho)[0]
    assert not curve.isnan().any()
    torch.testing.assert_close(curve[:1], elbo(log_rho))
    torch.testing.assert_close(curve[-1:], iwae(log_rho))
    steps = curve[1:] - curve[:-1]
    finite = curve[:-1] > -INF
    assert (steps[finite] >= -1e-9).all(), curve


def test_a_sampled_curve_depends_on_its_seed_alone_and_is_near_the_exact_one() -> None:
    log_rho = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = iwae_curve(log_rho)
    sampled = iwae_curve(log_rho, max_subsets=210, seed=3)
    assert torch.equal(sampled, iwae_curve(log_rho, max_subsets=210, seed=3))
    assert not torch.equal(sampled, iwae_curve(log_rho, max_subsets=210, seed=4))
    few = [k - 1 for k in range(1, 11) if math.comb(10, k) <= 210]
    assert torch.equal(sampled[:, few], exact[:, few]), "sizes with few subsets are exact"
    torch.testing.assert_close(sampled, exact, rtol=0, atol=0.1)


def test_traces_without_weight_give_minus_infinity_and_never_nan() -> None:
    log_rho = torch.tensor([[-INF, -INF, -INF], [-INF, -1e4, -INF], [1e4, 1e4, 1e4]])
    assert elbo(log_rho).tolist() == [-INF, -INF, 1e4]
    assert iwae(log_rho).tolist() == pytest.approx([-INF, -1e4 - math.log(3), 1e4])
    expected = torch.tensor([[-INF] * 3, [-INF, -INF, -1e4 - math.log(3)], [1e4] * 3])
    torch.testing.assert_close(iwae_curve(log_rho), expected.double())


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("bound", [elbo, iwae, iwae_curve])
def test_a_nan_or_infinite_weight_is_refused_by_its_index(bound, bad: float) -> None:  # type: ignore[no-untyped-def]
    log_rho = torch.zeros(3, 4)
    log_rho[2, 1] = bad
    with pytest.raises(ValueError, match=rf"log_rho\[2, 1\] is {bad}"):
        bound(log_rho)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 2, 3)])
def test_log_weights_must_be_questions_by_traces(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="questions, K"):
        iwae(torch.zeros(shape))


def test_a_curve_needs_at_least_one_subset() -> None:
    with pytest.raises(ValueError, match="max_subsets is 0"):
        iwae_curve(torch.zeros(1, 2), max_subsets=0)
