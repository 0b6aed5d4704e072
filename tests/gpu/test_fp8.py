"""The recipes of FP8: what they lose, what they train, what stays in bfloat16."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.training.trainer import train
from tests.gpu.conftest import Measured
from tests.gpu.fp8_reference import in_fp8
from tests.gpu.models import (
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
from tests.gpu.place import Place, first_rehearsed
from tests.gpu.trainings import job, lines, opened, scores

RECIPES = {
    "tensorwise": Fp8Settings(recipe="tensorwise"),
    "tensorwise-e4m3": Fp8Settings(recipe="tensorwise", format="e4m3"),
    "delayed": Fp8Settings(recipe="delayed"),
    "blockwise": Fp8Settings(recipe="blockwise"),
    "blockwise-hybrid": Fp8Settings(recipe="blockwise", format="hybrid"),
}
ALIGN = 128
# Of the mean loss over the last ten of 30 steps.
LARGEST_GAP = 0.01


@pytest.mark.needs_gpu("no CPU multiplies in FP8")
@pytest.mark.parametrize("name", RECIPES)
def test_log_probs_and_gradients_lose_what_eight_bits_lose(
    name: str, tmp_path: Path, place: Place, measured: Measured
) -> None:
    fp8 = RECIPES[name]
    folder, ids = write_model(place, tmp_path), sequences()
    exact = reference(folder, place)
    low = in_fp8(reference(folder, place), fp8.number_format, range(2))
    plain, model = (megatron_model(folder, place, fp8=how).train() for how in (None, fp8))
    for _ in range(2):
        # Delayed scaling knows no scale yet.
        backward(packed(model, ids, place, ALIGN))
        model.zero_grad()

    expected, theirs = one_by_one(exact, ids), one_by_one(low, ids)
    without, found = (packed(of, ids, place, ALIGN) for of in (plain, model))
    for log_probs in (expected, theirs, found):
        backward(log_probs)
    off = {
        "bfloat16": float((without - expected).detach().std()),
        "fp8": float((found - expected).detach().std()),
        "transformers in fp8": float((theirs - expected).detach().std()),
    }
    wanted, rounded, own = own_gradients(exact), own_gradients(low), gradients(model, folder)
    errors = {
        key: (distance(own[key], wanted[key]), distance(rounded[key], wanted[key]))
        for key in wanted
    }
    worst = max(errors, key=lambda key: errors[key][0] / errors[key][1])
    measured(log_prob_error=off, worst_gradient_error_and_transformers=(worst, *errors[worst]))

    assert off["fp8"] > 2 * off["bfloat16"], "nothing was computed in FP8"
    assert off["fp8"] < 1.5 * off["transformers in fp8"]
    ours, of_theirs = errors[worst]
    assert ours < 2 * of_theirs, f"the gradient of {worst}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, place: Place) -> tuple[Path, list[float]]:
    """A model of four layers, and the losses of 30 steps in bfloat16."""
    folder = tmp_path_factory.mktemp("bfloat16")
    start = write_model(place, folder / "start", num_hidden_layers=4)
    made = job(start, folder / "run", place, steps=place.steps(30), save_every=1000)
    train(made)
    losses = [line["loss"] for line in lines(made.folder)]
    assert losses[-1] < 0.8 * losses[0], "there is nothing to learn here"
    return start, losses


@pytest.mark.parametrize("name", first_rehearsed(RECIPES))
def test_thirty_steps_in_fp8_have_the_losses_of_bfloat16(
    name: str, trained: tuple[Path, list[float]], tmp_path: Path, place: Place, measured: Measured
) -> None:
    start, expected = trained
    precisions: set[torch.dtype] = set()
    steps = place.steps(30)
    made = job(start, tmp_path, place, fp8=RECIPES[name], steps=steps, save_every=1000)
    train(made, at_end=lambda models: precisions.update(p.dtype for p in models[0].parameters()))
    told = lines(tmp_path)
    losses = [line["loss"] for line in told]
    gap = abs(fmean(losses[-10:]) / fmean(expected[-10:]) - 1)
    measured(gap=gap, limit=LARGEST_GAP, losses=losses, losses_of_bfloat16=expected)
    assert len(losses) == steps and told[-1]["skipped"] == 0
    assert losses[0] == pytest.approx(expected[0], rel=LARGEST_GAP)
    assert gap < LARGEST_GAP
    assert precisions == {torch.bfloat16}, "weights stay in bfloat16"


@pytest.mark.needs_gpu("no CPU has FP8's statistics")
@pytest.mark.parametrize("name", ["tensorwise", "delayed", "blockwise"])
def test_the_metrics_tell_of_largest_values_and_what_is_known_of_scales(
    name: str, tmp_path: Path, place: Place, measured: Measured
) -> None:
    start = write_model(place, tmp_path / "start")
    made = job(start, tmp_path / "run", place, fp8=RECIPES[name], steps=4, save_every=1000)
    train(made)
    told = [
        {key: value for key, value in line.items() if key.startswith("fp8_")}
        for line in lines(made.folder)
    ]
    measured(statistics=told)
    # The largest weight of the layers' products, from the file: steps of 1e-3 move it a little.
    matrices = [
        parameter.abs().max()
        for key, parameter in reference(start, place).named_parameters()
        if ".layers." in key and parameter.dim() == 2
    ]
    largest = float(torch.stack(matrices).max().detach())
    assert told[0]["fp8_weight_amax"] == pytest.approx(largest, rel=0.02)
    for line in told:
        assert 0 < line["fp8_gradient_amax"] < math.inf
        assert 0 < line["fp8_input_amax"] < math.inf
        assert line["fp8_broken"] in (0, None)
    if name == "delayed":
        assert 0 < told[-1]["fp8_range_least"] <= told[-1]["fp8_range_most"]
    else:
        assert told[-1]["fp8_range_most"] is None


@pytest.mark.needs_gpu("no CPU multiplies in FP8")
@pytest.mark.parametrize("name", ["tensorwise", "blockwise"])
def test_the_first_and_last_layers_that_are_asked_for_compute_in_bfloat16(
    name: str, tmp_path: Path, place: Place, measured: Measured
) -> None:
    import transformer_engine.pytorch as te

    folder, ids = write_model(place, tmp_path, num_hidden_layers=4), sequences()
    fp8 = RECIPES[name].model_copy(update={"first_layers_bf16": 1, "last_layers_bf16": 2})
    model = megatron_model(folder, place, fp8=fp8).train()
    backward(packed(model, ids, place, ALIGN))
    ran = [
        {part.fp8 for part in layer.modules() if isinstance(part, (te.Linear, te.LayerNormLinear))}
        for layer in model.decoder.layers
    ]
    expected = one_by_one(in_fp8(reference(folder, place), fp8.number_format, [1]), ids)
    everywhere = one_by_one(in_fp8(reference(folder, place), fp8.number_format, range(4)), ids)
    exact = one_by_one(reference(folder, place), ids)
    off = {
        "one layer": float((packed(model, ids, place, ALIGN) - exact).detach().std()),
        "transformers, one layer": float((expected - exact).detach().std()),
        "transformers, four layers": float((everywhere - exact).detach().std()),
    }
    measured(layers_in_fp8=[sorted(layer) for layer in ran], log_prob_error=off)
    assert ran == [{False}, {True}, {False}, {False}]
    assert off["one layer"] < off["transformers, four layers"]


@pytest.mark.parametrize("name", first_rehearsed(["tensorwise", "delayed", "blockwise"]))
def test_scoring_after_a_training_in_fp8_is_in_bfloat16_bit_for_bit(
    name: str, tmp_path: Path, place: Place, measured: Measured
) -> None:
    start = write_model(place, tmp_path / "start")
    never = job(start, tmp_path / "never", place)
    before = scores(opened(never.model, start))
    made = job(start, tmp_path / "run", place, fp8=RECIPES[name], steps=3)
    at_end: dict[str, Any] = {}
    train(made, at_end=lambda models: at_end.update(fp8=scores(models)))
    after = scores(opened(made.model, start))
    measured(largest_difference=float((after - before).abs().max()))
    assert after.equal(before)
    assert not at_end["fp8"].equal(before), "three steps changed nothing"
