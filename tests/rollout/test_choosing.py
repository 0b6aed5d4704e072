from __future__ import annotations

import math

import pytest
import torch

from megatron_vr.rollout.choosing import choose

NEVER = -math.inf
LAST = math.nextafter(1.0, 0.0)


def _choose(probs: list[float], uniforms: list[float], top_p: float = 1.0) -> list[int]:
    logits = torch.tensor(probs, dtype=torch.float64).log().expand(len(uniforms), -1)
    draws = torch.tensor(uniforms, dtype=torch.float64)
    return choose(logits, draws, temperature=1.0, top_p=top_p)[0].tolist()


def test_the_token_is_the_one_whose_interval_of_the_cdf_holds_the_uniform() -> None:
    probs = [0.25, 0.5, 0.25]
    assert _choose(probs, [0.0, 0.2499, 0.2501, 0.7499, 0.7501, LAST]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_a_token_without_probability_is_never_chosen(top_p: float) -> None:
    probs = [0.0, 0.5, 0.0, 0.5, 0.0]
    uniforms = [0.0, 0.25, 0.5, 0.75, LAST]
    assert set(_choose(probs, uniforms, top_p)) == {1, 3}


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [
        (0.05, {3}),
        (0.4, {3}),
        (0.41, {3, 1}),
        (0.7, {3, 1}),
        (0.71, {3, 1, 0}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(
    top_p: float, nucleus: set[int]
) -> None:
    # Off the exact borders, so that rounding of the logits cannot move them.
    probs = [0.2001, 0.3, 0.0998, 0.4001]
    uniforms = torch.linspace(0, LAST, 2000, dtype=torch.float64).tolist()
    assert set(_choose(probs, uniforms, top_p)) == nucleus


def test_equal_probabilities_at_the_edge_of_the_nucleus_go_to_the_lower_token_id() -> None:
    uniforms = torch.linspace(0, LAST, 100, dtype=torch.float64).tolist()
    assert set(_choose([0.25, 0.25, 0.25, 0.25], uniforms, top_p=0.45)) == {0, 1}


def test_a_single_possible_token_has_log_prob_zero() -> None:
    logits = torch.tensor([[NEVER, 2.0, NEVER]])
    for temperature in (0.0, 0.3, 1.0):
        tokens, log_probs = choose(logits, torch.tensor([0.5]).double(), temperature, 1.0)
        assert (tokens.tolist(), log_probs.tolist()) == ([1], [0.0])
