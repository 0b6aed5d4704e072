"""A training that was stopped goes on as if it had not been, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.training.trainer import train
from tests.gpu.conftest import Measured
from tests.gpu.models import write_model
from tests.gpu.place import Place, first_rehearsed, forget_fp8
from tests.gpu.trainings import job, lines
from tests.training.harness import Stop, stop_after
from tests.training.jobs import differing

HOW = {
    "bfloat16": None,
    "tensorwise": Fp8Settings(recipe="tensorwise"),
    # A history shorter than the training, so that what is in it counts.
    "delayed": Fp8Settings(recipe="delayed", amax_history=4),
    "blockwise": Fp8Settings(recipe="blockwise"),
}


@pytest.mark.parametrize("name", first_rehearsed(HOW))
def test_a_stopped_training_goes_on_bit_for_bit(
    name: str,
    tmp_path: Path,
    place: Place,
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # cuDNN sums attention's gradient in no fixed order otherwise.
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    start = write_model(place, tmp_path / "start")
    whole, broken = (job(start, tmp_path / run, place, fp8=HOW[name]) for run in ("a", "b"))
    uninterrupted = train(whole)
    forget_fp8()
    with pytest.raises(Stop):
        train(broken, stop_after(3))
    forget_fp8()
    steps: list[int] = []
    continued = train(broken, lambda found: steps.append(found.step))
    different = differing(uninterrupted, continued)
    losses = [[line["loss"] for line in lines(made.folder)] for made in (whole, broken)]
    measured(losses=losses, differing=len(different), first=different[:3])
    assert steps == [3, 4, 5, 6], "from the checkpoint of step 2"
    assert losses[0] == losses[1]
    assert not different


def test_how_far_a_resumed_training_drifts_with_attention_as_trainings_use_it(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    """Without determinism: close, and told how close."""
    start = write_model(place, tmp_path / "start")
    whole, broken = (job(start, tmp_path / run, place) for run in ("a", "b"))
    uninterrupted = train(whole)
    with pytest.raises(Stop):
        train(broken, stop_after(3))
    different = differing(uninterrupted, train(broken))
    one, two = ([line["loss"] for line in lines(made.folder)] for made in (whole, broken))
    measured(losses=[one, two], differing=len(different))
    assert two == pytest.approx(one, rel=1e-2)


def test_a_training_with_plain_layers_goes_on_with_others(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    start = write_model(place, tmp_path / "start")
    whole = job(start, tmp_path / "a", place)
    train(whole)
    with pytest.raises(Stop):
        train(job(start, tmp_path / "b", place, spec="plain"), stop_after(3))
    steps: list[int] = []
    train(job(start, tmp_path / "b", place), lambda found: steps.append(found.step))
    one, two = ([line["loss"] for line in lines(tmp_path / run)] for run in ("a", "b"))
    measured(losses=[one, two])
    assert steps == [3, 4, 5, 6]
    assert two == pytest.approx(one, rel=1e-2)
