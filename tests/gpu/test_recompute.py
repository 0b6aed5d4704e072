"""Recomputing activations changes no gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.models import (
    HALF_SPACING,
    backward,
    distance,
    gradients,
    megatron_model,
    packed,
    sequences,
    write_model,
)
from tests.gpu.place import Place


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_recomputed_activations_give_the_same_gradients(
    recompute: str,
    tmp_path: Path,
    place: Place,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Attention's gradient is summed in no fixed order otherwise.
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    folder, ids = write_model(place, tmp_path), sequences()
    values, found = {}, {}
    for how in ("none", recompute):
        model = megatron_model(folder, place, recompute=how).train()
        values[how] = packed(model, ids, place)
        backward(values[how])
        found[how] = gradients(model, folder)
    errors = {name: distance(found[recompute][name], found["none"][name]) for name in found["none"]}
    worst = max(errors, key=errors.__getitem__)
    apart = distance(values[recompute].detach(), values["none"].detach())
    measured(largest_relative_difference=errors[worst], of=worst, limit=HALF_SPACING)
    measured(log_probs_apart=apart)
    assert apart <= HALF_SPACING
    assert errors[worst] <= HALF_SPACING, worst


def test_the_order_of_sums_is_all_that_differs_between_two_backward_passes(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    """With kernels that are not deterministic, as trainings use them."""
    folder, ids = write_model(place, tmp_path), sequences()
    found = []
    for _ in range(2):
        model = megatron_model(folder, place).train()
        backward(packed(model, ids, place))
        found.append(gradients(model, folder))
    errors = {name: distance(found[0][name], found[1][name]) for name in found[0]}
    worst = max(errors, key=errors.__getitem__)
    bits = all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    measured(largest_relative_difference=errors[worst], of=worst, bit_for_bit=bits)
    assert errors[worst] <= 4 * HALF_SPACING, worst
