"""FP8's statistics: closed forms, and layers that have the attributes of Transformer Engine's.

Its own layers compute on a GPU alone; those here are stand-ins with its names (`quantizers`,
`weight_names`, `layer_norm_weight`), its order (input, weight, output; gradient of the output, of
the input), and of delayed scaling its quantizers' `amax` and `scale`.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.errors import StageError
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.fp8_stats import (
    GRADIENT,
    INPUT,
    NORMED,
    UNKNOWN,
    WEIGHT,
    Fp8Stats,
    Fp8Watch,
    over_ranks,
    summarise,
)
from tests.parallel.launch import run_ranks
from tests.training.harness import with_layout

DELAYED, TENSORWISE = Fp8Settings(recipe="delayed"), Fp8Settings(recipe="tensorwise")


def of(*tensors: tuple[int, float, float, float]) -> Fp8Stats:
    """Of one rank's tensors, each its kind, amax, scale and what it uses of the range."""
    kinds, amax, scale, used = (torch.tensor(column) for column in zip(*tensors, strict=True))
    return over_ranks([summarise(kinds, amax, scale, used).tolist()], 1)


def test_the_largest_of_each_kind_are_told() -> None:
    found = of(
        (INPUT, 3.0, UNKNOWN, UNKNOWN),
        (INPUT, 7.0, UNKNOWN, UNKNOWN),
        (WEIGHT, 0.5, UNKNOWN, UNKNOWN),
        (GRADIENT, 1e-5, UNKNOWN, UNKNOWN),
    )
    assert asdict(found) == {
        "input_amax": 7.0,
        "weight_amax": 0.5,
        "gradient_amax": pytest.approx(1e-5),
        "range_least": None,
        "range_most": None,
        "saturated": None,
        "broken": 0.0,
    }


def test_a_kind_without_a_tensor_is_not_known() -> None:
    found = of((WEIGHT, 2.0, UNKNOWN, UNKNOWN))
    assert (found.input_amax, found.weight_amax, found.gradient_amax) == (None, 2.0, None)


def test_an_input_behind_a_norm_is_an_input() -> None:
    found = of((NORMED, 9.0, 50.0, 1.25), (INPUT, 2.0, 50.0, 0.5))
    assert (found.input_amax, found.range_most, found.saturated) == (9.0, 1.25, 1.0)
    assert of((NORMED, 0.0, 1.0, 0.0)).broken == 1


def test_more_than_the_range_is_saturated_and_its_whole_is_not() -> None:
    found = of((INPUT, 1.0, 9.0, 0.25), (INPUT, 1.0, 9.0, 1.0000001), (GRADIENT, 1.0, 9.0, 1.5))
    assert (found.range_least, found.range_most, found.saturated) == (0.25, 1.5, 1.0)


@pytest.mark.parametrize(
    ("tensor", "broken"),
    [
        ((INPUT, math.nan, 1.0, math.nan), 1),
        ((WEIGHT, math.inf, UNKNOWN, UNKNOWN), 1),
        ((INPUT, 1.0, math.inf, math.inf), 1),
        ((INPUT, 1.0, math.nan, math.nan), 1),
        ((INPUT, 1.0, 0.0, 0.0), 1),
        ((INPUT, 0.0, 1.0, 0.0), 1),
        ((WEIGHT, 0.0, UNKNOWN, UNKNOWN), 1),
        # A rank without an example has no gradient.
        ((GRADIENT, 0.0, 1.0, 0.0), 0),
        ((INPUT, 1.0, 448.0, 1.0), 0),
    ],
)
def test_what_is_not_finite_or_all_zero_is_broken(
    tensor: tuple[int, float, float, float], broken: int
) -> None:
    found = of(tensor, (GRADIENT, 2.0, 4.0, 0.5))
    assert found.broken == broken
    assert found.range_least == 0.5, "what is broken or empty uses no share of the range"


def test_ranks_have_the_largest_in_common_and_copies_count_once() -> None:
    rows = [
        [1.0, 5.0, 0.1, 0.3, 0.9, 2, 4, 8, 12],
        [3.0, 2.0, 0.2, 0.2, 1.7, 1, 2, 8, 12],
        # A stage whose layers are all in bfloat16.
        [-math.inf] * 3 + [math.inf, -math.inf, 0, 0, 0, 0],
    ]
    found = over_ranks(rows, copies=2)
    assert asdict(found) == {
        "input_amax": 3.0,
        "weight_amax": 5.0,
        "gradient_amax": 0.2,
        "range_least": 0.2,
        "range_most": 1.7,
        "saturated": 1.5,
        "broken": 3.0,
    }


def test_without_any_tensor_nothing_is_known() -> None:
    empty = [-math.inf] * 3 + [math.inf, -math.inf, 0, 0, 0, 0]
    assert set(asdict(over_ranks([empty, empty], 1)).values()) == {None}


EPSILON = 0.1


class Quantizer:
    """Of delayed scaling: `amax` of what it quantised last, and the `scale` it did it with."""

    def __init__(self, scale: float) -> None:
        self.scale = torch.tensor([scale])
        self.amax = torch.zeros(1)


class Linear(torch.nn.Module):
    """y = x·Wᵀ, as a tuple with a bias that is None, like Megatron's."""

    weight_names = ("weight",)

    def __init__(self, weight: torch.Tensor, quantizer: Any, norm: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())
        if norm:
            self.layer_norm_weight = torch.nn.Parameter(torch.arange(1.0, weight.shape[1] + 1))
            self.eps = EPSILON
        self.quantizers: dict[str, list[Any]] = {
            "scaling_fwd": [quantizer() for _ in range(3)],
            "scaling_bwd": [quantizer() for _ in range(2)],
        }

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        for quantizer, value in zip(self.quantizers["scaling_fwd"], (x, self.weight), strict=False):
            if hasattr(quantizer, "amax"):
                quantizer.amax.copy_(value.detach().abs().max())
        return x @ self.weight.T, None


class Bare:
    """A quantizer that keeps nothing, as Transformer Engine's of today for other recipes."""


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one_layer(layer: Linear, fp8: Fp8Settings, batches: list[torch.Tensor]) -> Fp8Stats:
    """The statistics of a step in which the loss of each batch is Σ y² / 2, so that ∂y = y."""
    watch = Fp8Watch([layer], fp8)
    with watch.watching():
        for batch in batches:
            y, _ = layer(batch)
            (y.square().sum() / 2).backward()
    return watch.stats()


def measured(rank: int) -> dict[str, Any]:
    return dict(with_layout(Layout(), _measured))


def _measured() -> dict[str, Any]:
    weight = draws(4, 8, seed=1)
    batches = [draws(5, 8, seed=2), 3 * draws(5, 8, seed=3)]
    found: dict[str, Any] = {
        "delayed": one_layer(Linear(weight, lambda: Quantizer(8.0)), DELAYED, batches),
        "tensorwise": one_layer(Linear(weight, Bare), TENSORWISE, batches),
        "with a norm": one_layer(Linear(weight, Bare, norm=True), TENSORWISE, batches),
        "older": one_layer(Linear(weight, lambda: Quantizer(8.0)), TENSORWISE, batches),
        "delayed with a norm": one_layer(
            Linear(weight, lambda: Quantizer(8.0), norm=True), DELAYED, batches
        ),
    }
    plain = Linear(weight, Bare)
    plain.quantizers = {"scaling_fwd": [], "scaling_bwd": []}
    found["in bfloat16"] = one_layer(plain, TENSORWISE, batches)
    again = Linear(weight, Bare)
    watch = Fp8Watch([again], TENSORWISE)
    with watch.watching():
        again(100 * batches[0])
    watch.stats()
    again(1000 * batches[0])
    with watch.watching():
        again(batches[0])
    found["the step after"] = watch.stats()
    found["hooks left"] = len(again._forward_hooks)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    (found,) = run_ranks(measured, 1)
    return dict(found)


def normed(x: Any) -> Any:
    """RMSNorm with weights 1, 2, …"""
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + EPSILON) * np.arange(1, x.shape[1] + 1)


@pytest.fixture(scope="module")
def expected() -> dict[str, float]:
    """Largest values in numpy."""
    weight = draws(4, 8, seed=1).numpy()
    batches = [draws(5, 8, seed=2).numpy(), 3 * draws(5, 8, seed=3).numpy()]
    return {
        "input": max(float(np.abs(batch).max()) for batch in batches),
        "normed": max(float(np.abs(normed(batch)).max()) for batch in batches),
        "weight": float(np.abs(weight).max()),
        "gradient": max(float(np.abs(batch @ weight.T).max()) for batch in batches),
    }


@pytest.mark.parametrize("case", ["delayed", "tensorwise", "older"])
def test_a_layer_tells_the_largest_values_of_all_micro_batches(
    case: str, found: dict[str, Any], expected: dict[str, float]
) -> None:
    stats: Fp8Stats = found[case]
    assert stats.input_amax == pytest.approx(expected["input"])
    assert stats.weight_amax == pytest.approx(expected["weight"])
    assert stats.gradient_amax == pytest.approx(expected["gradient"], rel=1e-5)
    assert stats.broken == 0


def test_delayed_scaling_tells_how_much_of_the_range_is_used(
    found: dict[str, Any], expected: dict[str, float]
) -> None:
    """Inputs and weights are in e4m3, gradients in e5m2."""
    used = [8 * expected["input"] / 448, 8 * expected["weight"] / 448]
    used.append(8 * expected["gradient"] / 57344)
    stats: Fp8Stats = found["delayed"]
    assert stats.range_least == pytest.approx(min(used), rel=1e-5)
    assert stats.range_most == pytest.approx(max(used), rel=1e-5)
    assert stats.saturated == 0


def test_other_recipes_tell_no_range(found: dict[str, Any]) -> None:
    for case in ("tensorwise", "older"):
        stats: Fp8Stats = found[case]
        assert (stats.range_least, stats.range_most, stats.saturated) == (None, None, None)


def test_the_input_behind_a_layers_own_norm_is_what_the_norm_gives(
    found: dict[str, Any], expected: dict[str, float]
) -> None:
    """Of delayed scaling it is what the quantizer saw: here, without the norm."""
    stats: Fp8Stats = found["with a norm"]
    assert stats.input_amax == pytest.approx(expected["normed"], rel=1e-5)
    delayed: Fp8Stats = found["delayed with a norm"]
    assert delayed.input_amax == pytest.approx(expected["input"])
    assert delayed.range_most == pytest.approx(8 * expected["input"] / 448, rel=1e-5)


def test_layers_that_stay_in_bfloat16_do_not_count(found: dict[str, Any]) -> None:
    assert set(asdict(found["in bfloat16"]).values()) == {None}


def test_only_the_watched_step_counts(found: dict[str, Any]) -> None:
    largest = float(draws(5, 8, seed=2).abs().max())
    assert found["the step after"].input_amax == pytest.approx(largest)
    assert found["hooks left"] == 0


def test_a_scale_that_is_too_large_saturates() -> None:
    (found,) = run_ranks(saturated, 1)
    assert (found.saturated, found.range_most) == (1.0, pytest.approx(2.0))


def saturated(rank: int) -> Fp8Stats:
    """One input of 4 with the scale 224: 896 is twice e4m3's largest; the rest fits."""

    def work() -> Fp8Stats:
        layer = Linear(torch.eye(2), lambda: Quantizer(1.0))
        layer.quantizers["scaling_fwd"][0].scale.fill_(224.0)
        return one_layer(layer, DELAYED, [torch.tensor([[4.0, 1.0]])])

    stats: Fp8Stats = with_layout(Layout(), work)
    return stats


def test_two_ranks_tell_the_same(expected: dict[str, float]) -> None:
    one, two = run_ranks(of_one_batch_each, 2)
    assert one == two
    assert one.input_amax == pytest.approx(expected["input"])
    assert one.saturated == 0.5, "one of the two copies of the model cuts its input off"


def of_one_batch_each(rank: int) -> Fp8Stats:
    def work() -> Fp8Stats:
        layer = Linear(draws(4, 8, seed=1), lambda: Quantizer(1.0))
        layer.quantizers["scaling_fwd"][0].scale.fill_(1000.0 if rank else 1.0)
        batch = 3 * draws(5, 8, seed=3) if rank else draws(5, 8, seed=2)
        return one_layer(layer, DELAYED, [batch])

    stats: Fp8Stats = with_layout(Layout(), work)
    return stats


def test_a_model_without_such_layers_is_an_error() -> None:
    with pytest.raises(StageError, match=r"model\.fp8 is tensorwise, but no layer .* quantizers"):
        Fp8Watch([torch.nn.Linear(2, 2)], TENSORWISE)
