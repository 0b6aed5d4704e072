"""What a checkpoint must agree with to be resumed from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.errors import CheckpointError
from megatron_vr.training.checkpoint import _check_identity
from megatron_vr.training.job import TrainJob
from megatron_vr.training.trainer import _identity
from tests.training.jobs import job


def in_fp8(made: TrainJob, fp8: Fp8Settings | None) -> TrainJob:
    return replace(made, model=made.model.model_copy(update={"fp8": fp8}))


@pytest.mark.parametrize("begun", ["tensorwise", None])
@pytest.mark.parametrize("goes_on", ["tensorwise", "delayed", None])
def test_a_training_goes_on_in_the_precision_it_was_begun_in(
    begun: str | None, goes_on: str | None, tmp_path: Path
) -> None:
    made = job(tmp_path / "model", tmp_path / "run", dtype="bfloat16")
    saved, now = (
        _identity(in_fp8(made, None if name is None else Fp8Settings(recipe=name)))
        for name in (begun, goes_on)
    )
    if begun == goes_on:
        _check_identity(tmp_path, {"training": saved}, now)
        return
    with pytest.raises(CheckpointError, match="its fp8 is"):
        _check_identity(tmp_path, {"training": saved}, now)
