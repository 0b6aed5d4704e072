"""Weights go into Transformer Engine's layers and out of them unchanged, by every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.config.spec_choice import Spec
from megatron_vr.convert.live import live_tensors
from megatron_vr.convert.load import load_megatron
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.models.architecture import read_architecture
from megatron_vr.training.trainer import train
from tests.gpu.conftest import Measured
from tests.gpu.models import (
    megatron_model,
    one_by_one,
    reference,
    sequences,
    write_model,
)
from tests.gpu.place import Place
from tests.gpu.trainings import job, opened, scores
from tests.models.test_build_model import LLAMA3


def in_memory(models: Any, folder: Path) -> dict[str, torch.Tensor]:
    """A model's tensors under Transformers' names, copied to the host."""
    tensors = live_tensors(models, read_architecture(folder))
    return {name: tensor.cpu().clone() for name, tensor in tensors}


def assert_same_bits(found: dict[str, torch.Tensor], file: Path) -> None:
    """That `found` are the tensors of the safetensors `file`."""
    expected = load_file(file)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype == torch.bfloat16, name
        assert torch.equal(found[name].view(torch.int16), tensor.view(torch.int16)), name


@pytest.mark.parametrize(
    ("family", "tied", "changes"),
    [("qwen3", False, {}), ("qwen2", True, {}), ("llama", False, LLAMA3)],
    ids=["qwen3", "qwen2-tied", "llama3"],
)
def test_what_is_loaded_is_read_live_bit_for_bit(
    family: str, tied: bool, changes: dict[str, Any], tmp_path: Path, place: Place
) -> None:
    folder = write_model(place, tmp_path, family, tied, **changes)
    model = megatron_model(folder, place)
    assert_same_bits(in_memory([model], folder), folder / "model.safetensors")


def test_a_trainings_checkpoint_becomes_the_model_that_was_trained(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    start, released = write_model(place, tmp_path / "start"), tmp_path / "released"
    at_end: dict[str, Any] = {}

    def keep(models: Any) -> None:
        at_end.update(scores=scores(models), tensors=in_memory(models, start))

    made = job(start, tmp_path / "run", place)
    convert_to_hf(train(made, at_end=keep), released, base=start)
    assert_same_bits(at_end["tensors"], released / "model.safetensors")
    again = scores(opened(made.model, released))
    exact, low = (reference(released, place, dtype) for dtype in (torch.float32, torch.bfloat16))
    with torch.no_grad():
        expected, theirs = (one_by_one(model, sequences()).cpu() for model in (exact, low))
    off = {
        "scored": float((again - expected).std()),
        "transformers in bfloat16": float((theirs - expected).std()),
    }
    measured(log_prob_error=off)
    assert again.equal(at_end["scores"])
    assert off["scored"] < 1.5 * off["transformers in bfloat16"]


@pytest.mark.needs_gpu("there is one kind of layers on a CPU")
@pytest.mark.parametrize(("saved", "loaded"), [("plain", "te"), ("te", "plain")])
def test_a_checkpoint_of_one_kind_of_layers_loads_into_the_other(
    saved: Spec, loaded: Spec, tmp_path: Path, place: Place
) -> None:
    start, released = write_model(place, tmp_path / "start"), tmp_path / "released"
    checkpoint = train(job(start, tmp_path / "run", place, spec=saved, steps=4))
    convert_to_hf(checkpoint, released, base=start)
    model = megatron_model(start, place, spec=loaded)
    load_megatron([model], checkpoint)
    assert_same_bits(in_memory([model], start), released / "model.safetensors")
