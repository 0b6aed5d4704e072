"""Weights that are kept in FP8 alone: trained, saved, resumed, released."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.models.te_modules import quantised
from megatron_vr.training.stepper import Stepper, own_garbage
from megatron_vr.training.trainer import train
from tests.gpu.conftest import Measured
from tests.gpu.models import write_model
from tests.gpu.place import Place, forget_fp8
from tests.gpu.test_checkpoints import assert_same_bits, in_memory
from tests.gpu.trainings import job, lines
from tests.training.harness import Stop, stop_after
from tests.training.jobs import differing

RECIPES = ("tensorwise", "delayed", "blockwise")


@pytest.mark.needs_gpu("no CPU keeps weights in FP8")
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_in_fp8_train_resume_and_are_released_unrounded(
    recipe: Any,
    tmp_path: Path,
    place: Place,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    start, released = write_model(place, tmp_path / "start"), tmp_path / "released"
    kept = Fp8Settings(recipe=recipe, params=True)
    whole, broken = (
        job(start, tmp_path / run, place, fp8=kept, overlap=True) for run in ("a", "b")
    )
    beside = job(start, tmp_path / "c", place, fp8=kept.model_copy(update={"params": False}))
    at_end: dict[str, torch.Tensor] = {}
    uninterrupted = train(whole, at_end=lambda models: at_end.update(in_memory(models, start)))
    forget_fp8()
    train(beside)
    forget_fp8()
    with pytest.raises(Stop):
        train(broken, stop_after(3))
    forget_fp8()
    different = differing(uninterrupted, train(broken))
    losses = [[line["loss"] for line in lines(made.folder)] for made in (whole, broken, beside)]
    measured(losses_whole_resumed_and_without=losses, differing=len(different))
    measured(first=different[:3])
    assert losses[0] == losses[1]
    assert not different
    # Both round the same main weights to FP8 before they multiply, some by way of bfloat16.
    assert losses[0] == pytest.approx(losses[2], rel=1e-2)
    convert_to_hf(uninterrupted, released, base=start)
    assert_same_bits(at_end, released / "model.safetensors")
    distinct = {
        name: len(torch.unique(tensor)) for name, tensor in at_end.items() if "proj" in name
    }
    measured(fewest_distinct_values_of_a_matrix=min(distinct.values()))
    # FP8 has 255 numbers, whatever one scale makes of them.
    assert recipe == "blockwise" or min(distinct.values()) > 255


@pytest.mark.needs_gpu("no CPU keeps weights in FP8")
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_matrices_of_the_layers_are_in_fp8_and_nothing_else(
    recipe: Any, tmp_path: Path, place: Place, measured: Measured
) -> None:
    start = write_model(place, tmp_path / "start")
    fp8 = Fp8Settings(recipe=recipe, params=True)
    with own_garbage():
        stepper = Stepper(job(start, tmp_path / "run", place, fp8=fp8, overlap=True))
        outcomes = [stepper.step().outcome for _ in range(2)]
        (model,) = stepper.state.models
        found = {name: parameter for _, name, parameter in quantised(model)}
        matrices = [name for name, weight in model.named_parameters() if weight.dim() == 2]
        quantities = (len(list(quantised(model))), len(matrices))
    measured(in_fp8=quantities[0], matrices=quantities[1], losses=[one.loss for one in outcomes])
    assert all(one.finite for one in outcomes)
    assert found.keys() == {"weight"}
    # Four in each of two layers; embedding and head are the other two.
    assert quantities == (8, 10)
