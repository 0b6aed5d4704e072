"""A release that cannot be made, or was not written well, does not appear."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_vr.convert import quantise as quantise_module
from megatron_vr.convert.fp8_reload import load_fp8
from megatron_vr.convert.quantise import quantise
from megatron_vr.errors import CheckpointError, SettingsError
from tests.convert.small_release import TEXTS, write_source, write_texts

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "source"
    return write_source(folder, "qwen3", False, torch.bfloat16)


def scaled(kind: str, factor: float) -> Callable[[Tensors], None]:
    def corrupt(tensors: Tensors) -> None:
        tensors[f"model.layers.1.mlp.down_proj.{kind}_scale"] *= factor

    return corrupt


def swapped(tensors: Tensors) -> None:
    one, other = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    tensors[one], tensors[other] = tensors[other], tensors[one]


def dropped(tensors: Tensors) -> None:
    del tensors["model.layers.0.mlp.up_proj.input_scale"]


def zeroed(tensors: Tensors) -> None:
    tensors["model.layers.1.self_attn.o_proj.weight"].view(torch.uint8)[3] = 0


FAULTS = {
    "weight scale 1 % too large": scaled("weight", 1.01),
    "input scale 1 % too large": scaled("input", 1.01),
    "scale not a number": scaled("weight", float("nan")),
    "matrices of two layers swapped": swapped,
    "a row lost": zeroed,
    "a scale missing": dropped,
}


def quantise_with(
    fault: Callable[[Tensors], None],
    source: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Quantise into `root`/fp8 while `fault` happens to the tensors on the disk."""

    def corrupted(folder: Path, *rest: Any) -> Any:
        file = folder / "model.safetensors"
        tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
        fault(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        return load_fp8(folder, *rest)

    monkeypatch.setattr(quantise_module, "load_fp8", corrupted)
    texts = write_texts(root / "texts.jsonl")
    quantise(source, root / "fp8", format="fp8", calibration=texts)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_release_that_was_not_written_well_does_not_appear(
    fault: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError):
        quantise_with(FAULTS[fault], source, tmp_path, monkeypatch)
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]


def test_a_release_that_was_written_well_appears(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The injection itself is no fault."""
    quantise_with(lambda tensors: None, source, tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"texts.jsonl", "fp8"}


def test_what_cannot_be_quantised_is_refused_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    bare = write_source(tmp_path / "bare", "qwen3", False, torch.float32)
    for path in bare.glob("tokenizer*"):
        path.unlink()
    experts = write_source(tmp_path / "experts", "qwen3_moe", False, torch.float32)
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS[:1])
    before = sorted(tmp_path.iterdir())

    def refused(error: type[Exception], match: str, folder: Path = source, **changes: Any) -> None:
        wanted = {"format": "fp8", "calibration": texts} | changes
        target = wanted.pop("destination", tmp_path / "fp8")
        with pytest.raises(error, match=match):
            quantise(folder, target, **wanted)
        assert sorted(tmp_path.iterdir()) == before

    refused(SettingsError, "int3.*fp8", format="int3")
    refused(SettingsError, "samples=0", samples=0)
    refused(SettingsError, "has no tokenizer", folder=bare)
    refused(CheckpointError, "exists and is not empty", destination=taken)
    refused(CheckpointError, "mixture of experts", folder=experts)
    refused(CheckpointError, "config.json does not exist", folder=tmp_path)
    assert (taken / "notes.txt").read_text() == "mine"
    monkeypatch.setitem(sys.modules, "modelopt.torch.quantization", None)
    refused(SettingsError, r"pip install megatron-vr\[quant\]")
