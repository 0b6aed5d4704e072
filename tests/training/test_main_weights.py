"""Weights that are in FP8 alone are saved as the main weights. There is no FP8 here: parameters are
marked as if they were, and spoiled as rounding would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vr.parallel.layout import Layout
from tests.parallel.launch import run_ranks
from tests.training.harness import with_layout
from tests.training.jobs import job

SPOILED = ("mlp.linear_fc2.weight", "self_attention.linear_qkv.weight")


def two_ranks(rank: int, folder: str, overlap: bool) -> dict[str, Any]:
    return with_layout(Layout(), spoiled_and_saved, Path(folder), overlap)


def spoiled_and_saved(folder: Path, overlap: bool) -> dict[str, Any]:
    """What stands in for the spoiled parameters, and what a checkpoint has of them."""
    from megatron_vr.training.checkpoint import Checkpoints, Kept
    from megatron_vr.training.main_weights import rounded_main_weights
    from megatron_vr.training.stepper import Stepper
    from megatron_vr.training.update import gathered_weights

    made = job(folder / "model", folder / "run", dtype="bfloat16", overlap=overlap)
    stepper = Stepper(made)
    for _ in range(2):
        stepper.step()
    (model,) = stepper.state.models
    checkpoints = Checkpoints(folder / "saved", Kept(1), {})
    with gathered_weights(stepper.models):
        parameters = dict(model.named_parameters())
        wanted = {name: value.detach().clone() for name, value in parameters.items()}
        chosen = [name for name in parameters if name.endswith(SPOILED)]
        for name in chosen:
            parameters[name].quantize_ = None  # type: ignore[attr-defined]
            parameters[name].data.mul_(1.25)
        with rounded_main_weights([model], stepper.state.optimizer):
            inside = {name: value.detach().clone() for name, value in model.named_parameters()}
        after = dict(model.named_parameters())
        checkpoints.save(stepper.done, stepper.state)
    checkpoints.settle()
    loaded = Stepper(made, load=False)
    for name, value in loaded.state.models[0].named_parameters():
        if name in chosen:
            value.quantize_ = None  # type: ignore[attr-defined]
    checkpoints.load(checkpoints.path(2), loaded.state)
    checkpoints.close()
    restored = dict(loaded.state.models[0].named_parameters())
    return {
        "spoiled": len(chosen),
        "inside": [name for name in wanted if not torch.equal(inside[name], wanted[name])],
        "put back": all(after[name] is value for name, value in parameters.items()),
        "restored": [name for name in wanted if not torch.equal(restored[name], wanted[name])],
    }


def at_its_end(rank: int, folder: str) -> dict[str, Any]:
    return with_layout(Layout(), ended, Path(folder))


def ended(folder: Path) -> dict[str, Any]:
    """Megatron's setting for FP8 in a model that trains, while what follows a training looks at it,
    and afterwards. Set behind its back: no layer here could compute so."""
    from megatron_vr.training.checkpoint import Checkpoints, Kept
    from megatron_vr.training.trainer import _Training

    made = job(folder / "model", folder / "run", dtype="bfloat16")
    training = _Training(made, Checkpoints(folder / "saved", Kept(1), {}), None, lambda: False)
    (model,) = training.stepper.state.models
    layers = [model.config, model.decoder.config, model.decoder.layers[0].config]
    model.config.fp8 = "hybrid"
    found = {"training": [config.fp8 for config in layers]}
    training.end(lambda models: found.update(end=[config.fp8 for config in layers]))
    return found | {"after": [config.fp8 for config in layers]}


def test_what_follows_a_training_in_fp8_computes_without_it(tmp_path: Path) -> None:
    from tests.training.reference import hugging_face

    hugging_face("qwen3-untied").save_pretrained(tmp_path / "model")
    (found,) = run_ranks(at_its_end, 1, str(tmp_path))
    assert found == {"training": ["hybrid"] * 3, "end": [None] * 3, "after": ["hybrid"] * 3}


@pytest.mark.parametrize("overlap", [False, True])
def test_checkpoints_have_the_main_weights_of_parameters_that_are_in_fp8_alone(
    overlap: bool, tmp_path: Path
) -> None:
    # Here, so that the spawned processes need not import Transformers.
    from tests.training.reference import hugging_face

    hugging_face("qwen3-untied").save_pretrained(tmp_path / "model")
    for found in run_ranks(two_ranks, 2, str(tmp_path), overlap):
        assert found["spoiled"] >= 4
        assert not found["inside"], f"other values stand in for {found['inside']}"
        assert found["put back"]
        assert not found["restored"], f"a checkpoint has other values of {found['restored']}"
