"""Gaps between log-probs, against numpy over all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from megatron_vr.traces.agreement import Gaps


def two_rows(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    one = -generator.exponential(1.0, count)
    return one, one + generator.normal(0, 0.01, count)


def test_mean_percentile_and_largest_are_those_of_all_tokens() -> None:
    rows = [two_rows(seed, 2000 + seed) for seed in range(3)]
    gaps = Gaps.joined(Gaps.of(one, other) for one, other in rows)
    exact = np.abs(np.concatenate([one - other for one, other in rows]))
    assert gaps.tokens == 6003
    assert gaps.mean == pytest.approx(exact.mean())
    assert gaps.largest == exact.max()
    assert gaps.percentile(99) == pytest.approx(np.percentile(exact, 99), rel=0.03)
    assert gaps.percentile(50) == pytest.approx(np.percentile(exact, 50), rel=0.03)


def test_gaps_survive_being_written() -> None:
    gaps = Gaps.of(*two_rows(1, 500))
    again = Gaps.from_json(json.loads(json.dumps(gaps.to_json())))
    assert (again.counts == gaps.counts).all()
    assert (again.mean, again.largest) == (gaps.mean, gaps.largest)


def test_equal_rows_have_no_gap() -> None:
    gaps = Gaps.of([-1.0, -2.0], [-1.0, -2.0])
    assert (gaps.mean, gaps.percentile(99), gaps.largest) == (0.0, 0.0, 0.0)


def test_no_token_is_no_gap() -> None:
    assert (Gaps.of([], []).mean, Gaps.joined([]).percentile(99)) == (0.0, 0.0)


@pytest.mark.parametrize("broken", [float("nan"), float("-inf")])
def test_what_is_no_number_is_infinitely_far(broken: float) -> None:
    gaps = Gaps.of([-1.0, broken], [-1.0, -1.0])
    assert gaps.mean == gaps.largest == float("inf")
