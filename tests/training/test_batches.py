"""Which examples a step learns from: both weightings have the same expected gradient."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vr.config.settings import TrainSettings
from megatron_vr.errors import DataError
from megatron_vr.training.batches import (
    BatchPlan,
    Draw,
    batch_sample_size,
    make_batch_plan,
    systematic_resample,
)

WEIGHTS = [0.5, 0.0, 2.0, 1.0, 0.25]
COUNTS = [3, 9, 5, 2, 8]


def plan(weights: list[float] = WEIGHTS, seed: int = 3, **changes: object) -> BatchPlan:
    chosen = {"batch_size": 2, "steps": 6} | changes
    counts = (COUNTS * len(weights))[: len(weights)]
    lengths = [count + 4 for count in counts]
    return make_batch_plan(weights, counts, lengths, TrainSettings(**chosen), seed)


def stream(made: BatchPlan) -> list[Draw]:
    return [draw for step in range(made.steps) for draw in made.batch(step)]


def test_every_pass_holds_each_example_of_positive_weight_once_with_its_weight() -> None:
    draws = stream(plan(steps=6))
    for turn in range(3):
        one_pass = draws[4 * turn : 4 * turn + 4]
        found = sorted((draw.example, draw.loss_weight) for draw in one_pass)
        assert found == [(0, 0.5), (2, 2.0), (3, 1.0), (4, 0.25)]
    assert draws[:4] != draws[4:8], "passes are shuffled anew"


def test_a_batch_is_a_function_of_the_step_and_the_seed() -> None:
    assert plan().batch(4) == plan().batch(4)
    assert stream(plan()) != stream(plan(seed=4))


def test_a_batch_larger_than_the_data_spans_passes() -> None:
    batch = plan(batch_size=10, steps=1).batch(0)
    counts = Counter(draw.example for draw in batch)
    assert len(batch) == 10
    assert set(counts.values()) == {2, 3}


def test_epochs_become_steps_over_the_examples_of_positive_weight() -> None:
    assert plan(steps=None, epochs=2.5, batch_size=3).steps == 4  # ceil(4 · 2.5 / 3)


def test_drawn_examples_come_as_often_as_their_weights_say_and_weigh_one() -> None:
    made = plan(steps=1500, weighting="draw")
    draws = stream(made)
    assert {draw.loss_weight for draw in draws} == {1.0}
    share = Counter(draw.example for draw in draws)
    for example, weight in enumerate(WEIGHTS):
        expected = weight / sum(WEIGHTS)
        assert share[example] / len(draws) == pytest.approx(expected, abs=0.01)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30),
    st.integers(1, 40),
    st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=200, deadline=None)
def test_systematic_resampling_gives_the_floor_or_the_ceiling_of_the_expected_count(
    weights: list[float], count: int, offset: float
) -> None:
    array = np.array(weights)
    found = Counter(systematic_resample(array, count, offset).tolist())
    assert sum(found.values()) == count
    expected = count * array / array.sum()
    for index, number in enumerate(expected):
        low, high = np.floor(number - 1e-9), np.ceil(number + 1e-9)
        assert low <= found[index] <= high, f"{found[index]} of index {index}, expected {number}"


@pytest.mark.parametrize("weighting", ["loss", "draw"])
def test_the_normaliser_is_the_mean_weighted_target_count_of_a_step(weighting: str) -> None:
    made = plan(steps=2000, weighting=weighting)
    steps = [
        sum(draw.loss_weight * COUNTS[draw.example] for draw in made.batch(step))
        for step in range(made.steps)
    ]
    assert np.mean(steps) == pytest.approx(made.normaliser, rel=0.02)


def test_both_weightings_expect_the_same_gradient() -> None:
    """Of loss Σ w n f / C with any per-example value f: here f = example²."""

    def expected(made: BatchPlan) -> float:
        total = sum(d.loss_weight * COUNTS[d.example] * d.example**2 for d in stream(made))
        return total / made.steps / made.normaliser

    by_loss, by_draw = plan(steps=2000), plan(steps=2000, weighting="draw")
    assert expected(by_draw) == pytest.approx(expected(by_loss), rel=0.03)


def test_the_effective_sample_size_counts_a_repeated_draw_as_one_example() -> None:
    assert batch_sample_size([Draw(0, 1.0), Draw(1, 1.0)]) == pytest.approx(2)
    assert batch_sample_size([Draw(7, 1.0), Draw(7, 1.0)]) == pytest.approx(1)
    assert batch_sample_size([Draw(0, 3.0), Draw(1, 1.0)]) == pytest.approx(1.6)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -0.5], "row 1 .* weight -0.5"),
        ([float("nan"), 1.0], "row 0 .* weight nan"),
        ([1.0, float("inf")], "row 1 .* weight inf"),
        ([0.0, 0.0], "none of the 2 examples"),
    ],
)
def test_weights_that_cannot_be_trained_on_are_named(weights: list[float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        plan(weights)


def test_an_example_that_does_not_fit_a_micro_batch_is_named() -> None:
    with pytest.raises(DataError, match=r"row 4 .* 12 tokens.* micro_batch_tokens=11"):
        plan(micro_batch_tokens=11)


def test_examples_that_do_not_fit_are_dropped_and_counted_when_asked() -> None:
    made = plan(micro_batch_tokens=9, too_long="drop")  # lengths 7, 13, 9, 6 and 12
    assert made.dropped == 1, "an example of weight 0 is not missed"
    assert {draw.example for draw in stream(made)} == {0, 2, 3}
    assert made.normaliser == pytest.approx(2 * (0.5 * 3 + 2.0 * 5 + 1.0 * 2) / 3)
    with pytest.raises(DataError, match=r"all 4 examples are longer .* has 12 tokens"):
        plan(micro_batch_tokens=5, too_long="drop")


def test_an_example_without_a_target_is_named_unless_its_weight_is_zero() -> None:
    chosen = TrainSettings(steps=1)
    with pytest.raises(DataError, match=r"row 1 .* no target"):
        make_batch_plan([1.0, 1.0], [2, 0], [5, 5], chosen, 1)
    assert make_batch_plan([1.0, 0.0], [2, 0], [5, 5], chosen, 1).steps == 1
