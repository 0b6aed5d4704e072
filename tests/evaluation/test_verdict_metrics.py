from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from megatron_vr.errors import DataError
from megatron_vr.evaluation.metrics import (
    accuracy,
    compare,
    coverage,
    pass_at_k,
    standard_error,
    summarise,
)


def _random_verdicts(questions: int, samples: int, seed: int) -> dict[str, list[bool]]:
    chance = np.random.default_rng(seed)
    return {
        f"q{i}": (chance.random(samples) < ability).tolist()
        for i, ability in enumerate(chance.random(questions))
    }


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_an_accepted_sample(samples: int) -> None:
    for k, accepted in product(range(1, samples + 1), range(samples + 1)):
        drawn = [True] * accepted + [False] * (samples - accepted)
        subsets = list(combinations(drawn, k))
        expected = sum(any(subset) for subset in subsets) / len(subsets)
        assert pass_at_k(samples, accepted, k) == pytest.approx(expected, abs=1e-12), (k, accepted)


def test_pass_at_k_keeps_its_precision_for_many_samples() -> None:
    n, c, k = 20_000, 3, 5_000
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its mean over all outcomes of n samples is 1 − (1 − p)^k."""
    n, k, p = 6, 3, 0.3
    mean = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
    )
    assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(
    ("samples", "accepted", "k"), [(4, 1, 5), (4, 5, 2), (4, -1, 2), (4, 1, 0)]
)
def test_pass_at_k_refuses_what_it_cannot_estimate(samples: int, accepted: int, k: int) -> None:
    with pytest.raises(DataError, match=f"pass@{k}"):
        pass_at_k(samples, accepted, k)


def test_standard_error_is_that_of_the_question_means() -> None:
    verdicts = _random_verdicts(questions=40, samples=8, seed=0)
    means = [np.mean(samples) for samples in verdicts.values()]
    assert standard_error(verdicts) == pytest.approx(np.std(means, ddof=1) / math.sqrt(40))


def test_standard_error_does_not_shrink_when_every_sample_is_repeated() -> None:
    verdicts = _random_verdicts(questions=40, samples=2, seed=1)
    repeated = {question: samples * 5 for question, samples in verdicts.items()}
    assert standard_error(repeated) == pytest.approx(standard_error(verdicts))


def test_standard_error_follows_the_spread_over_runs_with_unequal_samples() -> None:
    chance = np.random.default_rng(2)
    counts = chance.integers(1, 9, size=120)

    def draw() -> dict[str, list[bool]]:
        """A run on new questions: abilities of 0.1 or 0.9, and samples given those."""
        abilities = chance.choice([0.1, 0.9], size=120)
        return {
            f"q{i}": (chance.random(n) < ability).tolist()
            for i, (n, ability) in enumerate(zip(counts, abilities, strict=True))
        }

    runs = [draw() for _ in range(300)]
    spread = np.std([accuracy(run) for run in runs], ddof=1)
    assert np.mean([standard_error(run) for run in runs]) == pytest.approx(spread, rel=0.1)


def test_a_single_question_has_no_standard_error() -> None:
    assert math.isnan(standard_error({"q": [True, False]}))


def test_accuracy_is_over_samples_and_coverage_over_questions() -> None:
    verdicts = {"a": [True, False, False, False], "b": [True, True], "c": [False, False]}
    assert accuracy(verdicts) == 3 / 8
    assert coverage(verdicts) == pytest.approx(2 / 3)


def test_the_summary_of_a_small_evaluation() -> None:
    verdicts = {
        "a": [True, True, False, False],
        "b": [False, False, False, True],
        "c": [True, True, True, True],
        "d": [False, False, False, False],
    }
    greedy = {"d": False, "c": True, "b": False, "a": True}
    bands = {"a": "hard", "b": "easy", "c": "hard", "d": None, "unasked": "mid"}
    summary = summarise(verdicts, greedy, bands, k=2)
    # pass@2: a: 1 − C(2,2)/C(4,2) = 5/6, b: 1 − C(3,2)/C(4,2) = 1/2, c: 1, d: 0
    assert summary == {
        "accuracy": 7 / 16,
        "greedy": 0.5,
        "pass@2": pytest.approx((5 / 6 + 1 / 2 + 1) / 4),
        "standard_error": pytest.approx(standard_error(verdicts)),
        "questions": 4,
        "bands": {
            "hard": {
                "accuracy": 6 / 8,
                "greedy": 1.0,
                "pass@2": pytest.approx((5 / 6 + 1) / 2),
                "questions": 2,
            },
            "easy": {
                "accuracy": 1 / 4,
                "greedy": 0.0,
                "pass@2": pytest.approx(1 / 2),
                "questions": 1,
            },
        },
    }
    assert list(summary["bands"]) == ["hard", "easy"]


@pytest.mark.parametrize(
    ("verdicts", "greedy", "bands", "message"),
    [
        ({}, {}, {}, "no verdicts"),
        ({"a": []}, {"a": True}, {"a": None}, "'a' has no samples"),
        ({"a": [True, True]}, {"b": True}, {"a": None}, "other questions .* 'a'"),
        ({"a": [True, True]}, {"a": True}, {}, "'a' .* no entry in bands"),
        ({"a": [True]}, {"a": True}, {"a": None}, "pass@2 of 1 samples"),
    ],
)
def test_an_evaluation_with_holes_is_refused(
    verdicts: dict[str, list[bool]],
    greedy: dict[str, bool],
    bands: dict[str, str | None],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        summarise(verdicts, greedy, bands, k=2)


def test_a_paired_comparison_agrees_with_all_resamples_of_a_few_questions() -> None:
    first = {"a": [True, True], "b": [True, False], "c": [True, True], "d": [False, False]}
    second = {"d": [True, False], "c": [False, False], "b": [False, False], "a": [True, False]}
    differences = [0.5, 0.5, 1.0, -0.5]
    every = [np.mean(resample) for resample in product(differences, repeat=4)]
    low, high = np.quantile(every, [0.1, 0.9])
    found = compare(first, second, seed=0, level=0.8)
    assert found.difference == pytest.approx(np.mean(differences))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.questions == 4


def test_pairing_leaves_out_how_hard_the_questions_are() -> None:
    """Two models that differ on every question alike differ by exactly that."""
    first = {f"q{i}": [i % 3 > 0, True] for i in range(60)}
    second = {f"q{i}": [i % 3 > 0, False] for i in range(60)}
    found = compare(first, second, seed=0)
    assert (found.low, found.difference, found.high) == (0.5, 0.5, 0.5)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says() -> None:
    chance = np.random.default_rng(0)
    covered = 0
    for run in range(200):
        first = {str(i): (chance.random(4) < 0.6).tolist() for i in range(80)}
        second = {str(i): (chance.random(4) < 0.4).tolist() for i in range(80)}
        found = compare(first, second, seed=run, level=0.9, resamples=400)
        covered += found.low <= 0.2 <= found.high
    assert 165 <= covered <= 195, f"a 90% interval covered {covered} of 200 times"


def test_a_comparison_is_repeatable_and_independent_of_order() -> None:
    first = _random_verdicts(30, 4, seed=3)
    second = _random_verdicts(30, 4, seed=4)
    once = compare(first, second, seed=5, resamples=50)
    assert compare(dict(reversed(first.items())), second, seed=5, resamples=50) == once
    assert compare(first, second, seed=6, resamples=50) != once


def test_models_on_different_questions_are_not_compared() -> None:
    with pytest.raises(DataError, match="other questions"):
        compare({"a": [True]}, {"b": [True]}, seed=0)
