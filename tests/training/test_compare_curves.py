"""Verdicts on two loss curves, from curves whose means are known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.training.compare_curves import compare, trailing_gaps

LOSSES = st.floats(0.01, 100.0)


def test_the_last_tenth_counts() -> None:
    reference = [9.0] * 270 + [2.0] * 30
    tried = [1.0] * 270 + [2.0] * 15 + [2.04] * 15
    found = compare(reference, tried, 0.02)
    assert (found.steps, found.window, found.lost) == (300, 30, None)
    assert (found.reference, found.tried) == pytest.approx((2.0, 2.02))
    assert found.gap == pytest.approx(0.01)
    assert found.passed


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (7, 7), (10, 10), (99, 10), (101, 11)])
def test_at_least_ten_steps_count_where_there_are_ten(steps: int, window: int) -> None:
    assert compare([1.0] * steps, [1.0] * steps, 0.0).window == window


@pytest.mark.parametrize(("tried", "passes"), [(2.009, True), (2.011, False), (1.989, False)])
def test_a_gap_is_one_to_either_side(tried: float, passes: bool) -> None:
    assert compare([2.0] * 20, [tried] * 20, 0.005).passed is passes


def test_a_reference_below_zero_has_a_gap_of_the_right_sign() -> None:
    assert compare([-2.0] * 10, [-1.9] * 10, 1.0).gap == pytest.approx(0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_fails_whenever_it_comes(value: float) -> None:
    tried = [1.0] * 50
    tried[3] = value
    found = compare([1.0] * 50, tried, 0.5)
    assert (found.gap, found.lost, found.passed) == (0.0, 4, False)


def test_what_the_reference_loses_too_is_not_held_against_the_tried() -> None:
    both = [math.nan] + [1.0] * 49
    assert compare(both, both, 0.0).passed
    at_the_end = [1.0] * 49 + [math.nan]
    found = compare(at_the_end, at_the_end, 0.0)
    assert (found.gap, found.lost, found.passed) == (None, None, False), "nothing to compare"


def test_nothing_is_a_share_of_zero() -> None:
    assert not compare([0.0] * 10, [0.0] * 10, 1.0).passed


@pytest.mark.parametrize(("one", "two"), [([], []), ([1.0], [1.0, 1.0])])
def test_curves_of_other_lengths_are_refused(one: list[float], two: list[float]) -> None:
    with pytest.raises(ValueError, match="do not compare"):
        compare(one, two, 0.1)


@given(st.lists(LOSSES, min_size=10, max_size=60), st.floats(-0.5, 0.5))
def test_a_curve_that_is_scaled_has_that_gap(curve: list[float], share: float) -> None:
    scaled = [loss * (1 + share) for loss in curve]
    assert compare(curve, scaled, 1.0).gap == pytest.approx(share, abs=1e-9)
    assert trailing_gaps(curve, scaled) == pytest.approx([share] * len(curve), abs=1e-9)


def test_a_trailing_gap_is_of_the_ten_steps_before() -> None:
    gaps = trailing_gaps([1.0] * 12, [1.0] * 11 + [2.0])
    assert gaps[:11] == [0.0] * 11 and gaps[11] == pytest.approx(0.1)
    assert trailing_gaps([1.0, math.nan], [1.0, 1.0]) == [0.0, None]
