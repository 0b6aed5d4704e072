"""The comparison behind `--fp8-check`: the first steps of a training in both precisions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.training.checked import Checked
from megatron_vr.training.first_steps import first_steps
from megatron_vr.training.trainer import train
from tests.gpu.conftest import Measured
from tests.gpu.models import write_model
from tests.gpu.place import Place
from tests.gpu.trainings import job, lines


def test_the_check_makes_the_trainings_own_steps_and_judges_their_gap(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    start = write_model(place, tmp_path / "start")
    steps, fp8 = place.steps(20), Fp8Settings(recipe="tensorwise")
    tried = job(start, tmp_path / "run", place, fp8=fp8, steps=steps)
    without = replace(tried, model=tried.model.model_copy(update={"fp8": None}))
    checked = Checked(
        first_steps(without, steps, "bfloat16"), first_steps(tried, steps, "FP8 tensorwise"), 0.01
    )
    assert not tried.folder.exists(), "a check leaves the training's folder alone"
    train(tried)
    losses = [line["loss"] for line in lines(tried.folder)]
    measured(checked=checked.as_json(), losses_of_the_training=losses)
    assert checked.fault is None
    # Attention's gradients are summed in no fixed order.
    for own, told in zip(losses, checked.tried.losses, strict=True):
        assert abs(own / told - 1) < 0.01


def test_a_gap_that_is_too_large_is_a_fault(tmp_path: Path, place: Place) -> None:
    """By a threshold that no two different trainings keep."""
    start = write_model(place, tmp_path / "start")
    one = job(start, tmp_path / "run", place, steps=20)
    other = job(
        start,
        tmp_path / "run",
        place,
        steps=20,
        optimizer=one.settings.optimizer.model_copy(update={"learning_rate": 1e-5}),
    )
    checked = Checked(first_steps(one, 12, "one"), first_steps(other, 12, "other"), 0.005)
    assert checked.fault is not None and "0.50%" in checked.fault
