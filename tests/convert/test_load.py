"""A folder is loaded in full or refused; every parameter is filled exactly once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_vr.convert import load as load_module
from megatron_vr.convert.hf_reader import HFWeights, check_tensors
from megatron_vr.convert.load import load_hf
from megatron_vr.convert.maps import weight_map
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture, read_architecture
from tests.models.reference import tiny_model

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3", False, num_hidden_layers=2)


def build(architecture: Architecture) -> Any:
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import Layout

    (built,) = build_model(
        architecture,
        Layout(),
        spec="plain",
        dtype="float32",
        recompute="none",
        log_prob_chunk=8,
    )
    return built


def check(folder: Path) -> None:
    weights = HFWeights(folder)
    check_tensors(weights, read_architecture(folder))


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.usefixtures("megatron")
def test_shards_and_a_single_file_fill_the_same_parameters(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "single")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="50KB")
    assert (tmp_path / "sharded" / INDEX).exists()
    architecture = read_architecture(tmp_path / "single")
    single, sharded = build(architecture), build(architecture)
    load_hf([single], tmp_path / "single", architecture)
    load_hf([sharded], tmp_path / "sharded", architecture)
    for (name, one), other in zip(single.named_parameters(), sharded.parameters(), strict=True):
        assert one.equal(other), name
        assert one.abs().max() > 0, f"{name} was left at zero"


@pytest.mark.usefixtures("megatron")
def test_a_parameter_that_no_tensor_fills_is_named(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    short = weight_map(architecture)
    del short["decoder.layers.mlp.linear_fc2.weight"]
    monkeypatch.setattr(load_module, "weight_map", lambda architecture: short)
    with pytest.raises(CheckpointError, match=r"decoder\.layers\.mlp\.linear_fc2\.weight"):
        load_hf([build(architecture)], tmp_path, architecture)


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize(("times", "message"), [(0, "was not filled"), (2, "more than once")])
def test_a_parameter_that_is_not_filled_exactly_once_is_named(
    times: int, message: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    real = load_module.sharded_tensors

    def wrong(built: Any) -> Any:
        for shard in real(built):
            for _ in range(times if shard.key == "output_layer.weight" else 1):
                yield shard

    monkeypatch.setattr(load_module, "sharded_tensors", wrong)
    with pytest.raises(CheckpointError, match=rf"output_layer\.weight .*{message}"):
        load_hf([build(architecture)], tmp_path, architecture)


def test_a_tied_model_may_store_its_embedding_twice_if_the_copies_agree(tmp_path: Path) -> None:
    tiny_model("qwen3", True, num_hidden_layers=1).save_pretrained(tmp_path)
    embedding = "model.embed_tokens.weight"
    edit(tmp_path, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    check(tmp_path)
    edit(tmp_path, lambda tensors: tensors["lm_head.weight"].add_(1))
    with pytest.raises(CheckpointError, match=r"ties .* lm_head\.weight differs"):
        check(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks tensors .*: model\.norm\.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "has unknown tensors .*: extra"),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(96, 63)}),
            r"model\.layers\.1\.mlp\.up_proj\.weight has shape \(96, 63\).*\(96, 64\)",
        ),
    ],
    ids=["missing", "extra", "shape"],
)
def test_tensors_that_are_not_the_models_are_named(
    change: Any, message: str, model: Any, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    edit(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        check(tmp_path)


def test_a_missing_shard_is_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"shard .*{shard.name} is missing"):
        check(tmp_path)


def test_a_truncated_file_is_named(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    content = (tmp_path / SINGLE).read_bytes()
    (tmp_path / SINGLE).write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=f"{SINGLE} cannot be read .*truncated"):
        check(tmp_path)


def test_an_index_that_does_not_match_its_shards_is_refused(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    index = json.loads((tmp_path / INDEX).read_text())
    kept = index["weight_map"].pop("model.norm.weight")
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight, which .* does not list"):
        check(tmp_path)
    index["weight_map"] |= {"model.norm.weight": kept, "other": kept}
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="places tensor other in"):
        check(tmp_path)
    index["weight_map"]["other"] = "../elsewhere.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        check(tmp_path)


def test_pickled_weights_and_empty_folders_are_refused(model: Any, tmp_path: Path) -> None:
    model.config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="neither"):
        check(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickled weights only"):
        check(tmp_path)
