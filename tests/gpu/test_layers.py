"""Transformer Engine's layers compute what the plain layers and Transformers compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.models import (
    HALF_SPACING,
    backward,
    distance,
    gradients,
    megatron_model,
    one_by_one,
    own_gradients,
    packed,
    reference,
    sequences,
    write_model,
)
from tests.gpu.place import Place
from tests.models.test_build_model import LLAMA3

# Each with grouped queries: two heads of queries for one of keys and values.
FAMILIES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "qwen3-head128": ("qwen3", False, {"head_dim": 128}),
    "qwen3-tied-head64": ("qwen3", True, {}),
    "qwen2-head64": ("qwen2", False, {}),
    "qwen2-tied-head64": ("qwen2", True, {}),
    "llama3-head128": ("llama", False, LLAMA3 | {"head_dim": 128}),
    "llama3-tied-head64": ("llama", True, LLAMA3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_all_gradients_are_those_of_transformers_up_to_bfloat16(
    name: str, tmp_path: Path, place: Place, measured: Measured
) -> None:
    family, tied, changes = FAMILIES[name]
    folder = write_model(place, tmp_path, family, tied, **changes)
    ids = sequences()

    exact, low = (reference(folder, place, dtype) for dtype in (torch.float32, torch.bfloat16))
    expected, theirs = one_by_one(exact, ids), one_by_one(low, ids)
    models = {spec: megatron_model(folder, place, spec=spec) for spec in {place.spec, "plain"}}
    found = {spec: packed(model, ids, place) for spec, model in models.items()}
    for log_probs in (expected, theirs, *found.values()):
        backward(log_probs)

    # Transformers' own loss of precision in bfloat16 is the measure.
    scale = float((theirs - expected).detach().std())
    assert expected.std() > 0.1, "the reference is too flat to tell models apart"
    errors = {spec: float((values - expected).detach().std()) for spec, values in found.items()}
    apart = float((found[place.spec] - found["plain"]).detach().std())
    measured(log_prob_error=errors, transformers_error=scale, te_against_plain=apart)

    wanted, rounded = own_gradients(exact), own_gradients(low)
    worst: dict[str, tuple[float, str]] = {}
    for spec, model in models.items():
        own = gradients(model, folder)
        assert own.keys() == wanted.keys()
        worst[spec] = max(
            (distance(own[key], wanted[key]) / _loss_of_precision(rounded[key], wanted[key]), key)
            for key in wanted
        )
    measured(worst_gradient_error_in_transformers_own=worst)

    for spec in models:
        assert errors[spec] < 1.5 * scale, f"the log-probs of {spec} are off"
        ratio, key = worst[spec]
        assert ratio < 2, f"{spec}: the gradient of {key} is off {ratio:.1f} times Transformers'"
    assert apart < 2 * scale


def _loss_of_precision(low: torch.Tensor, exact: torch.Tensor) -> float:
    """Of a gradient in bfloat16; at least what rounding the result alone can do."""
    return max(distance(low, exact), HALF_SPACING)
