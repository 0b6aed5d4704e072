"""The estimators of π_θ(Y_x|x,z): definitions, bias, and Theorem 1's comparison of variances."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor

from megatron_vr.objectives.estimators import (
    log_accuracy,
    log_estimate,
    log_geometric_mean_likelihood,
    log_likelihood,
)
from tests.objectives.latent_model import (
    ANSWERS,
    CORRECT,
    TRACES,
    random_model,
    token_log_probs,
)

HINTS = [ANSWERS.index(answer) for answer in CORRECT]


def test_gml_is_the_geometric_mean_of_the_answers_token_probabilities() -> None:
    model = random_model(0)
    for answer in CORRECT:
        tokens = token_log_probs(model.answers, answer, longest=2)
        estimate = log_geometric_mean_likelihood(
            tokens.sum(dim=1), torch.full((len(TRACES),), len(answer))
        )
        torch.testing.assert_close(estimate.exp(), tokens.exp().prod(dim=1) ** (1 / len(answer)))


def test_the_likelihood_estimator_is_unbiased_over_hints_drawn_evenly() -> None:
    model = random_model(1)
    count = torch.full((len(TRACES),), len(CORRECT))
    estimates = [log_likelihood(model.log_answers()[:, hint], count).exp() for hint in HINTS]
    torch.testing.assert_close(torch.stack(estimates).mean(dim=0), model.log_correct().exp())


def test_the_accuracy_estimator_is_unbiased_over_sampled_answers() -> None:
    model = random_model(2)
    probability = model.log_answers().exp()
    mean = torch.zeros(len(TRACES), dtype=torch.float64)
    for pair in product(range(len(ANSWERS)), repeat=2):
        share = sum(index in HINTS for index in pair) / 2
        estimate = log_accuracy(torch.full((len(TRACES),), share)).exp()
        mean += probability[:, list(pair)].prod(dim=1) * estimate
    torch.testing.assert_close(mean, model.log_correct().exp())


def variance(values: Tensor, probabilities: Tensor) -> float:
    mean = (values * probabilities).sum()
    return float((probabilities * (values - mean) ** 2).sum())


def likelihood_variance(correct: Tensor) -> float:
    """The variance of L over hints drawn evenly, from the probabilities of the correct answers."""
    count = torch.full(correct.shape, len(correct))
    return variance(
        log_likelihood(correct.log(), count).exp(), torch.full_like(correct, 1).div(len(correct))
    )


def accuracy_variance(p: float) -> float:
    """The variance of the accuracy of one sampled answer."""
    outcomes = torch.tensor([0.0, 1.0], dtype=torch.float64)
    return variance(log_accuracy(outcomes).exp(), torch.tensor([1 - p, p], dtype=torch.float64))


def splits(total: int, parts: int) -> list[tuple[int, ...]]:
    return [s for s in product(range(total + 1), repeat=parts) if sum(s) == total]


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_theorem_1_accuracy_has_the_smaller_worst_case_variance_from_accuracy_1_over_y(
    answers: int,
) -> None:
    """For every accuracy i/12, the worst of all splits of it among |Y_x| answers, in twelfths."""
    for numerator in range(1, 13):
        p = numerator / 12
        worst = max(
            likelihood_variance(torch.tensor(split, dtype=torch.float64) / 12)
            for split in splits(numerator, answers)
        )
        assert worst == pytest.approx((answers - 1) * p**2), "one answer holds it all"
        if numerator * answers >= 12:
            assert accuracy_variance(p) <= worst + 1e-12, (p, answers)
        else:
            assert accuracy_variance(p) > worst, "the theorem's condition is needed"
    assert accuracy_variance(1 / answers) == pytest.approx((answers - 1) / answers**2), "equality"


def test_an_answer_set_split_evenly_leaves_the_likelihood_estimator_without_variance() -> None:
    assert likelihood_variance(torch.tensor([0.3, 0.3], dtype=torch.float64)) < 1e-30


def test_no_accepted_answer_is_log_zero_and_an_impossible_answer_too() -> None:
    assert log_accuracy(torch.tensor([0.0, 0.25, 1.0])).tolist() == [-math.inf, math.log(0.25), 0]
    impossible = torch.tensor([-math.inf])
    one = torch.tensor([1])
    assert log_geometric_mean_likelihood(impossible, one).tolist() == [-math.inf]
    assert log_likelihood(impossible, one).tolist() == [-math.inf]


def test_estimates_are_float64_constants_whatever_comes_in() -> None:
    log_prob = torch.tensor([-3.0], dtype=torch.bfloat16, requires_grad=True)
    estimate = log_geometric_mean_likelihood(log_prob, torch.tensor([3]))
    assert estimate.dtype == torch.float64
    assert not estimate.requires_grad
    assert estimate.tolist() == [-1.0]


@pytest.mark.parametrize(
    ("name", "columns", "fault"),
    [
        ("accuracy", {"accuracy": [0.5, 1.5]}, r"accuracy\[1\] is 1\.5"),
        ("accuracy", {"accuracy": [math.nan, 1]}, r"accuracy\[0\] is nan"),
        ("accuracy", {"answer_log_prob": [0.0]}, "accuracy is None"),
        ("gml", {"answer_log_prob": [-1.0, -1], "answer_length": [1, 0]}, r"answer_length\[1\]"),
        ("gml", {"answer_log_prob": [-1.0]}, "answer_length is None"),
        ("gml", {"answer_log_prob": [math.inf], "answer_length": [1]}, r"answer_log_prob\[0\]"),
        ("likelihood", {"answer_log_prob": [math.nan], "answer_count": [1]}, "log_prob.0. is nan"),
        ("likelihood", {"answer_log_prob": [-1.0], "answer_count": [0]}, r"answer_count\[0\] is 0"),
        ("likelihood", {"answer_count": [1]}, "answer_log_prob is None"),
        ("median", {"accuracy": [1.0]}, "estimator 'median' is none of"),
    ],
)
def test_a_bad_column_is_refused_by_name_and_index(
    name: str, columns: dict[str, list[float]], fault: str
) -> None:
    tensors = {key: torch.tensor(values) for key, values in columns.items()}
    with pytest.raises(ValueError, match=fault):
        log_estimate(name, **tensors)  # type: ignore[arg-type]
