"""Normalisation within questions whose traces lie anywhere in the table."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from megatron_vr.objectives.groups import effective_sample_size, has_weight, normalise_by_group

INF = math.inf
GROUPS = 4
TABLES = st.lists(
    st.tuples(
        st.one_of(st.floats(-1e4, 1e4), st.floats(-2, 2), st.just(-INF)),
        st.integers(0, GROUPS - 1),
    ),
    min_size=1,
    max_size=24,
).map(
    lambda rows: (
        torch.tensor([log_rho for log_rho, _ in rows], dtype=torch.float64),
        torch.tensor([group for _, group in rows]),
    )
)


@given(TABLES)
@settings(max_examples=50, deadline=None)
def test_weights_are_the_softmax_within_each_question_and_zero_without_a_correct_trace(
    table: tuple[Tensor, Tensor],
) -> None:
    log_rho, group = table
    weight = normalise_by_group(log_rho, group, GROUPS)
    weighed = has_weight(log_rho, group, GROUPS)
    ess = effective_sample_size(weight, group, GROUPS)
    for question in range(GROUPS):
        own = log_rho[group == question]
        correct = bool((own > -INF).any())
        assert bool(weighed[question]) == correct
        if correct:
            torch.testing.assert_close(weight[group == question], own.softmax(dim=0))
            assert 1 - 1e-9 <= float(ess[question]) <= len(own) + 1e-9
        else:
            assert weight[group == question].tolist() == [0.0] * len(own)
            assert float(ess[question]) == 0.0
    assert (weight[log_rho == -INF] == 0.0).all()


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_traces_changes_no_bit(table: tuple[Tensor, Tensor], random) -> None:  # type: ignore[no-untyped-def]
    log_rho, group = table
    order = torch.tensor(random.sample(range(len(group)), len(group)))
    weight = normalise_by_group(log_rho, group, GROUPS)
    shuffled = normalise_by_group(log_rho[order], group[order], GROUPS)
    assert torch.equal(shuffled, weight[order])
    assert torch.equal(
        effective_sample_size(shuffled, group[order], GROUPS),
        effective_sample_size(weight, group, GROUPS),
    )


def test_a_constant_added_to_the_log_weights_of_a_question_changes_nothing() -> None:
    log_rho = torch.tensor([0.5, -1.0, 2.0, 0.25], dtype=torch.float64)
    group = torch.tensor([0, 1, 0, 1])
    shift = torch.tensor([2.0**13, -(2.0**13)], dtype=torch.float64)[group]
    torch.testing.assert_close(
        normalise_by_group(log_rho + shift, group, 2), normalise_by_group(log_rho, group, 2)
    )


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_equal_traces_share_alike_and_a_single_one_has_all(level: float) -> None:
    group = torch.tensor([0, 1, 0, 0, 0])
    weight = normalise_by_group(torch.full((5,), level), group, 2)
    assert weight.tolist() == [0.25, 1.0, 0.25, 0.25, 0.25]
    assert effective_sample_size(weight, group, 2).tolist() == [4.0, 1.0]


def test_a_question_without_traces_has_no_weight() -> None:
    group = torch.tensor([1])
    assert has_weight(torch.zeros(1), group, 3).tolist() == [False, True, False]
    assert effective_sample_size(torch.ones(1), group, 3).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("scale", [1e-300, 1.0, 1e300])
def test_the_effective_sample_size_knows_no_scale(scale: float) -> None:
    weight = torch.tensor([3.0, 1.0], dtype=torch.float64) * scale
    ess = effective_sample_size(weight, torch.tensor([0, 0]), 1)
    assert float(ess) == pytest.approx(16 / 10)


@pytest.mark.parametrize("bad", [math.nan, INF])
@pytest.mark.parametrize("function", [normalise_by_group, has_weight, effective_sample_size])
def test_nan_and_infinity_are_refused_by_index(function, bad: float) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=rf"\[1\] is {bad}"):
        function(torch.tensor([0.0, bad, bad]), torch.tensor([0, 0, 1]), 2)


@pytest.mark.parametrize(
    ("group", "fault"),
    [
        (torch.tensor([0, 2]), r"group\[1\] is 2"),
        (torch.tensor([-1, 0]), r"group\[0\] is -1"),
        (torch.tensor([0.0, 1.0]), "integers"),
        (torch.tensor([0]), "shapes"),
        (torch.tensor([[0, 1]]), "shapes"),
    ],
)
def test_a_group_that_does_not_fit_is_refused(group: Tensor, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        normalise_by_group(torch.zeros(2), group, 2)
