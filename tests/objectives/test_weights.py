"""The weight of a trace from its columns, and the loss's constant."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_vr.objectives.weights import (
    expected_weighted_tokens,
    forward_kl_weights,
    trace_weights,
)
from tests.objectives.latent_model import (
    TRACE_LENGTHS,
    assert_same,
    dyadic_model,
    gradients,
    random_model,
    tuple_probabilities,
    tuples,
)

INF = math.inf
# Two questions' traces, scattered: question 0 has rows 0, 2, 3 and question 1 has rows 1, 4.
GROUP = torch.tensor([0, 1, 0, 0, 1])
COLUMNS: dict[str, list[float]] = {
    "accuracy": [0.5, 0.0, 0.25, 1.0, 0.125],
    "answer_log_prob": [-2.0, -3.0, -1.5, -0.5, -8.0],
    "answer_length": [2, 3, 2, 2, 4],
    "answer_count": [3, 1, 3, 3, 1],
    "policy_log_prob": [-12.0, -30.0, -8.0, -4.0, -25.0],
    "sampler_log_prob": [-10.0, -21.0, -9.0, -6.0, -20.0],
    "trace_length": [4, 9, 3, 1, 5],
}
ESTIMATES = {
    "accuracy": lambda row: row["accuracy"],
    "gml": lambda row: math.exp(row["answer_log_prob"]) ** (1 / row["answer_length"]),
    "likelihood": lambda row: row["answer_count"] * math.exp(row["answer_log_prob"]),
}
RATIOS = {
    "sequence": lambda row: math.exp(row["policy_log_prob"] - row["sampler_log_prob"]),
    "geometric-mean": lambda row: (
        (math.exp(row["policy_log_prob"]) / math.exp(row["sampler_log_prob"]))
        ** (1 / row["trace_length"])
    ),
    "none": lambda row: 1.0,
}
USED: dict[str, list[str]] = {
    "accuracy": ["accuracy"],
    "gml": ["answer_log_prob", "answer_length"],
    "likelihood": ["answer_log_prob", "answer_count"],
    "sequence": ["policy_log_prob", "sampler_log_prob"],
    "geometric-mean": ["policy_log_prob", "sampler_log_prob", "trace_length"],
    "none": [],
}


def columns(*names: str, **changes: list[float]) -> dict[str, Any]:
    """The named columns as float32 or integer tensors, some changed."""
    return {name: torch.tensor(changes.get(name, COLUMNS[name])) for name in names}


@pytest.mark.parametrize("normalise", ["question", "none"])
@pytest.mark.parametrize(("estimator", "ratio"), list(product(ESTIMATES, RATIOS)))
def test_weights_are_the_products_of_their_parts_from_the_columns_needed_alone(
    estimator: Any, ratio: Any, normalise: Any
) -> None:
    given = columns(*USED[estimator], *USED[ratio])
    found = trace_weights(
        estimator=estimator, ratio=ratio, normalise=normalise, group=GROUP, groups=2, **given
    )
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]
    estimate = np.array([ESTIMATES[estimator](row) for row in rows])
    rho = np.array([RATIOS[ratio](row) for row in rows]) * estimate
    total = np.array([rho[[0, 2, 3]].sum(), rho[[1, 4]].sum()])
    squares = np.array([(rho[[0, 2, 3]] ** 2).sum(), (rho[[1, 4]] ** 2).sum()])
    divisor = total if normalise == "question" else np.array([3, 2])
    np.testing.assert_allclose(found.log_estimate.exp(), estimate, rtol=1e-12)
    np.testing.assert_allclose(found.log_rho.exp(), rho, rtol=1e-12)
    np.testing.assert_allclose(found.weight, rho / divisor[GROUP], rtol=1e-12)
    np.testing.assert_allclose(found.ess, total**2 / squares, rtol=1e-12)
    assert found.has_weight.tolist() == [True, True]
    torch.testing.assert_close(found.log_rho, found.log_ratio + found.log_estimate)
    assert found.weight.dtype == found.ess.dtype == torch.float64


@pytest.mark.parametrize(("estimator", "ratio"), list(product(ESTIMATES, RATIOS)))
def test_a_needed_column_that_is_missing_is_named(estimator: Any, ratio: Any) -> None:
    used = USED[estimator] + USED[ratio]
    for missing in used:
        given = columns(*(name for name in used if name != missing))
        with pytest.raises(ValueError, match=f"{missing} is None"):
            trace_weights(
                estimator=estimator, ratio=ratio, normalise="none", group=GROUP, groups=2, **given
            )


@pytest.mark.parametrize("normalise", ["question", "none"])
def test_a_question_without_a_correct_trace_says_so(normalise: Any) -> None:
    found = trace_weights(
        estimator="accuracy",
        ratio="geometric-mean",
        normalise=normalise,
        group=GROUP,
        groups=3,
        **columns(*USED["geometric-mean"]),
        accuracy=torch.tensor([0.5, 0.0, 0.0, 1.0, 0.0]),
    )
    assert found.weight[[1, 2, 4]].tolist() == [0.0, 0.0, 0.0]
    assert (found.weight[[0, 3]] > 0).all()
    assert found.has_weight.tolist() == [True, False, False]
    assert found.ess[1:].tolist() == [0.0, 0.0]


def test_a_trace_impossible_without_the_hint_weighs_nothing() -> None:
    given = columns(*USED["accuracy"], *USED["sequence"], policy_log_prob=[-1, -1, -INF, -1, -1])
    found = trace_weights(
        estimator="accuracy", ratio="sequence", normalise="question", group=GROUP, groups=2, **given
    )
    assert float(found.weight[2]) == 0.0
    assert float(found.weight[[0, 3]].sum()) == pytest.approx(1)


def test_the_geometric_mean_ratio_of_traces_of_one_token_is_their_ratio() -> None:
    by_ratio = [
        trace_weights(
            estimator="accuracy",
            ratio=ratio,  # type: ignore[arg-type]
            normalise="question",
            group=GROUP,
            groups=2,
            **columns("accuracy", *USED["sequence"]),
            trace_length=torch.ones(5),
        ).weight
        for ratio in ("geometric-mean", "sequence")
    ]
    assert torch.equal(*by_ratio)


@pytest.mark.parametrize("level", [-1e4, 1e4])
def test_ratios_of_great_magnitude_neither_overflow_nor_vanish_within_a_question(
    level: float,
) -> None:
    found = trace_weights(
        estimator="accuracy",
        ratio="sequence",
        normalise="question",
        group=torch.tensor([0, 0]),
        groups=1,
        accuracy=torch.tensor([0.75, 0.25]),
        policy_log_prob=torch.tensor([level - 2e4, level - 2e4]),
        sampler_log_prob=torch.tensor([-2e4, -2e4]),
    )
    assert found.weight.tolist() == pytest.approx([0.75, 0.25])
    assert float(found.ess) == pytest.approx(1.6)


def test_an_unnormalised_weight_beyond_float64_is_refused_and_one_below_it_is_none() -> None:
    def weigh(policy_log_prob: float) -> Any:
        return trace_weights(
            estimator="accuracy",
            ratio="sequence",
            normalise="none",
            group=torch.tensor([0]),
            groups=1,
            accuracy=torch.tensor([1.0]),
            policy_log_prob=torch.tensor([policy_log_prob]),
            sampler_log_prob=torch.tensor([-1e4]),
        )

    with pytest.raises(ValueError, match=r"log_rho\[0\] is 10000\.0; .*normalise by question"):
        weigh(0.0)
    vanished = weigh(-2e4)
    assert vanished.weight.tolist() == vanished.ess.tolist() == [0.0]
    assert vanished.has_weight.tolist() == [False]


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("policy_log_prob", math.nan, r"policy_log_prob\[2\] is nan"),
        ("policy_log_prob", INF, r"policy_log_prob\[2\] is inf"),
        ("sampler_log_prob", -INF, r"sampler_log_prob\[2\] is -inf"),
        ("trace_length", 0, r"trace_length\[2\] is 0"),
        ("accuracy", -0.5, r"accuracy\[2\] is -0\.5"),
    ],
)
def test_a_bad_entry_is_refused_by_column_and_index(name: str, value: float, fault: str) -> None:
    changed = [*COLUMNS[name][:2], value, *COLUMNS[name][3:]]
    given = columns(*USED["accuracy"], *USED["geometric-mean"], **{name: changed})
    with pytest.raises(ValueError, match=fault):
        trace_weights(
            estimator="accuracy",
            ratio="geometric-mean",
            normalise="question",
            group=GROUP,
            groups=2,
            **given,
        )


@pytest.mark.parametrize("wrong", [{"ratio": "mean"}, {"normalise": "batch"}, {"estimator": "L"}])
def test_a_name_that_is_none_of_the_settings_is_refused(wrong: dict[str, Any]) -> None:
    names: dict[str, Any] = {"estimator": "accuracy", "ratio": "none", "normalise": "none"}
    with pytest.raises(ValueError, match="is none of"):
        trace_weights(**(names | wrong), group=GROUP, groups=2, **columns("accuracy"))


@pytest.mark.parametrize("size", [1, 2])
def test_unnormalised_weights_give_the_gradient_of_the_evidence_itself(size: int) -> None:
    model = random_model(3)
    chosen = tuples(size)
    flat = chosen.flatten()
    weight = trace_weights(
        estimator="accuracy",
        ratio="sequence",
        normalise="none",
        group=torch.arange(len(chosen)).repeat_interleave(size),
        groups=len(chosen),
        accuracy=model.log_correct().exp()[flat],
        policy_log_prob=model.log_policy()[flat],
        sampler_log_prob=model.log_sampler()[flat],
        trace_length=TRACE_LENGTHS[flat],
    ).weight.reshape(-1, size)
    probability = tuple_probabilities(model.log_sampler(), size).detach()
    surrogate = (probability[:, None] * weight * model.log_joint()[chosen]).sum()
    expected = gradients(model.log_evidence().exp(), model.theta)
    assert_same(gradients(surrogate, model.theta), expected, "gradient of P(Y_x|x)")


def test_the_gradient_of_the_forward_kl_is_the_posteriors_weighted_likelihood() -> None:
    model = random_model(5)
    posterior = model.posterior()
    kl = (posterior * (posterior.log() - model.log_sampler())).sum()
    weighted = -(posterior * model.log_sampler()).sum()
    expected = gradients(kl, [model.sampler])
    assert_same(gradients(weighted, [model.sampler]), expected, "forward KL")


def policy_traces(log_prob: Tensor) -> Tensor:
    """64 trace indices in exact proportion to the probabilities of a dyadic model."""
    times = (log_prob.exp() * 64).round().long()
    assert int(times.sum()) == 64
    return torch.arange(len(times)).repeat_interleave(times)


@pytest.mark.parametrize("seed", [0, 1])
def test_self_normalised_weights_of_policy_traces_give_the_forward_kls_gradient(seed: int) -> None:
    model = dyadic_model(seed)
    drawn = policy_traces(model.log_policy())
    accuracy = model.log_correct().exp()[drawn]
    weight = forward_kl_weights(accuracy, torch.zeros(64, dtype=torch.long), 1)
    surrogate = -(weight * model.log_sampler()[drawn]).sum()
    posterior = model.posterior()
    kl = (posterior * (posterior.log() - model.log_sampler())).sum()
    expected = gradients(kl, [model.sampler])
    assert_same(gradients(surrogate, [model.sampler]), expected, "forward KL")


def test_forward_kl_weights_are_shares_of_the_accuracy_of_each_question() -> None:
    weight = forward_kl_weights(torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0]), GROUP, 2)
    assert weight.tolist() == [0.5, 0.0, 0.25, 0.25, 0.0]


WEIGHTS = [0.5, 0.0, 2.0]
TOKENS = [4, 100, 3]


def test_the_constant_is_the_mean_over_batches_of_their_weighted_tokens() -> None:
    """All batches of two, enumerated: drawn evenly and weighing w, and drawn ∝ w weighing 1."""
    pairs = list(product(range(3), repeat=2))
    evenly = sum(WEIGHTS[i] * TOKENS[i] + WEIGHTS[j] * TOKENS[j] for i, j in pairs) / 9
    by_weight = sum(WEIGHTS[i] * WEIGHTS[j] / 2.5**2 * (TOKENS[i] + TOKENS[j]) for i, j in pairs)
    assert expected_weighted_tokens(WEIGHTS, TOKENS, 2, drawn=False) == pytest.approx(evenly)
    assert expected_weighted_tokens(WEIGHTS, TOKENS, 2, drawn=True) == pytest.approx(by_weight)
    as_arrays = np.array(WEIGHTS), np.array(TOKENS)
    assert expected_weighted_tokens(*as_arrays, 2, drawn=True) == pytest.approx(by_weight)
    as_tensors = torch.tensor(WEIGHTS), torch.tensor(TOKENS)
    assert expected_weighted_tokens(*as_tensors, 2, drawn=False) == pytest.approx(evenly)


@pytest.mark.parametrize(
    ("weights", "tokens", "batch_size", "fault"),
    [
        ([1.0, -1.0], [1, 1], 1, r"weights\[1\] is -1"),
        ([1.0, math.nan], [1, 1], 1, r"weights\[1\] is nan"),
        ([1.0], [1, 1], 1, "shapes"),
        ([1.0], [1], 0, "batch size 0"),
        ([], [], 1, "no example"),
        ([0.0, 1.0], [5, 0], 1, "no example"),
    ],
)
def test_a_constant_that_cannot_be_is_refused(
    weights: list[float], tokens: list[int], batch_size: int, fault: str
) -> None:
    with pytest.raises(ValueError, match=fault):
        expected_weighted_tokens(weights, tokens, batch_size, drawn=False)
