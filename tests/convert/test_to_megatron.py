"""A Hugging Face folder becomes a checkpoint that Megatron itself could have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_vr.convert.dist_reader import TensorCheckpoint
from megatron_vr.convert.load import load_hf, load_megatron
from megatron_vr.convert.maps import extra_states
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.parallel.layout import Layout
from tests.convert.stored import (
    assert_same_bits,
    assert_same_companions,
    write_folder,
)

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe"]
LAYOUTS = [Layout(), Layout(tensor=2, pipeline=2), Layout(pipeline=2, virtual_pipeline=2)]


def build(architecture: Architecture) -> list[Any]:
    from megatron_vr.models.gpt import build_model

    return build_model(  # type: ignore[return-value]
        architecture, Layout(), spec="plain", dtype="float32", recompute="none", log_prob_chunk=8
    )


@pytest.fixture(scope="module", params=[(f, t) for f in FAMILIES for t in (False, True)], ids=str)
def source(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, tied = request.param
    folder = tmp_path_factory.mktemp("hf") / "model"
    return write_folder(folder, family, tied, shards="100KB", num_hidden_layers=4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["one", "tp2-pp2", "pp2-vpp2"])
def test_there_and_back_is_the_source_bit_for_bit(
    source: Path, layout: Layout, tmp_path: Path
) -> None:
    convert_to_megatron(source, tmp_path / "megatron", layout, file_bytes=50_000)
    convert_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert_same_bits(source, tmp_path / "back")
    assert_same_companions(source, tmp_path / "back")


@pytest.mark.usefixtures("megatron")
def test_megatrons_own_loader_reads_it_as_the_source(source: Path, tmp_path: Path) -> None:
    """Against the model filled straight from the source, whose logits are compared with
    Transformers' elsewhere. The vocabulary is padded in the file and not in the model."""
    convert_to_megatron(source, tmp_path / "megatron", Layout(tensor=2, pipeline=2))
    architecture = read_architecture(source)
    expected, found = build(architecture), build(architecture)
    load_hf(expected, source, architecture)
    load_megatron(found, tmp_path / "megatron")
    for (name, one), other in zip(
        expected[0].named_parameters(), found[0].parameters(), strict=True
    ):
        assert one.equal(other), name


@pytest.mark.usefixtures("megatron")
def test_it_has_what_megatrons_own_save_has(source: Path, tmp_path: Path) -> None:
    from megatron.core import dist_checkpointing

    architecture = read_architecture(source)
    models = build(architecture)
    load_hf(models, source, architecture)
    (tmp_path / "theirs").mkdir()
    dist_checkpointing.save({"model": models[0].sharded_state_dict()}, str(tmp_path / "theirs"))
    convert_to_megatron(source, tmp_path / "ours", Layout())
    ours, theirs = TensorCheckpoint(tmp_path / "ours"), TensorCheckpoint(tmp_path / "theirs")
    assert ours.keys == theirs.keys
    for key in theirs.keys:
        assert (ours.shape(key), ours.dtype(key)) == (theirs.shape(key), theirs.dtype(key)), key
    assert set(extra_states(architecture)) == ours.objects
    # Megatron 0.19 stores what is no tensor here; its loader still takes it from a file of its own.
    of_modules = {name for name in theirs.objects if not name.startswith("common_state/")}
    assert of_modules <= ours.objects
    for field in ("sharded_backend", "sharded_backend_version"):
        stated = [
            json.loads((tmp_path / name / "metadata.json").read_text())[field]
            for name in ("ours", "theirs")
        ]
        assert stated[0] == stated[1], field


def test_the_vocabulary_is_padded_with_zeros_for_the_layout(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", vocab_size=129, num_attention_heads=4)
    convert_to_megatron(source, tmp_path / "out", Layout(tensor=2))
    stored = TensorCheckpoint(tmp_path / "out")
    for key in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert stored.shape(key) == (130, 64)
        assert stored.entry(key, ())[129:].abs().max() == 0


def test_each_pipeline_rank_has_files_of_its_own(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", num_hidden_layers=4)
    convert_to_megatron(source, tmp_path / "out", Layout(pipeline=2, virtual_pipeline=2))
    files = {path.name for path in (tmp_path / "out").glob("__[0-9]*.distcp")}
    assert files == {"__0_0.distcp", "__0_1.distcp", "__1_0.distcp", "__1_1.distcp"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_precisions_are_kept_and_changed_only_when_asked(dtype: Any, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", dtype=dtype)
    convert_to_megatron(source, tmp_path / "megatron", Layout())
    convert_to_hf(tmp_path / "megatron", tmp_path / "back")
    assert_same_bits(source, tmp_path / "back")
    assert_same_companions(source, tmp_path / "back")
    convert_to_hf(tmp_path / "megatron", tmp_path / "wide", dtype="float32")
    config = json.loads((tmp_path / "wide" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("float32", "float32")
    expected = load_file(source / "model.safetensors")
    for name, tensor in load_file(tmp_path / "wide" / "model.safetensors").items():
        assert tensor.equal(expected[name].float()), name


def test_pickled_weights_are_read_only_when_allowed(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    pickled = write_folder(tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save(load_file(source / "model.safetensors"), pickled / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights only.*--allow-pickle"):
        convert_to_megatron(pickled, tmp_path / "out", Layout())
    convert_to_megatron(pickled, tmp_path / "out", Layout(), allow_pickle=True)
    convert_to_hf(tmp_path / "out", tmp_path / "back")
    assert_same_bits(source, tmp_path / "back")


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this code ran",))


def test_a_pickle_that_holds_code_is_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_folder(tmp_path / "hf")
    (source / "model.safetensors").unlink()
    torch.save({"model.norm.weight": _Code()}, source / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors"):
        convert_to_megatron(source, tmp_path / "out", Layout(), allow_pickle=True)
    assert "this code ran" not in capsys.readouterr().out


def test_tensors_of_one_key_in_two_precisions_are_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name].bfloat16()
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.k_proj.*in one precision"):
        convert_to_megatron(source, tmp_path / "out", Layout())


def test_quantised_tensors_are_refused_by_name(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored as F8_E4M3"):
        convert_to_megatron(source, tmp_path / "out", Layout())


def _config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def _shorten(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shorten, "truncated"),
        (lambda folder: (folder / "model.safetensors").unlink(), "pickled weights only|neither"),
        (_config(auto_map={"AutoModel": "m.M"}), "auto_map"),
        (_config(hidden_act="gelu"), "hidden_act='gelu'"),
        (_config(rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope"),
        (_config(num_hidden_layers=3, layer_types=None), r"lacks tensors.*model\.layers\.2"),
        (_config(intermediate_size=95), r"has shape \(96, 64\).*asks for \(95, 64\)"),
    ],
    ids=["truncated", "missing", "code", "activation", "rope", "too few", "shape"],
)
def test_bad_input_is_one_error_and_no_output(damage: Any, message: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    damage(source)
    with pytest.raises(CheckpointError, match=message):
        convert_to_megatron(source, tmp_path / "out", Layout())
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_layout_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    with pytest.raises(SettingsError, match="tensor=3 does not divide"):
        convert_to_megatron(source, tmp_path / "out", Layout(tensor=3))
    with pytest.raises(SettingsError, match="pipeline=4 does not divide"):
        convert_to_megatron(source, tmp_path / "out", Layout(pipeline=4))
    assert not (tmp_path / "out").exists()


def test_an_old_llamas_computed_frequencies_are_left_out(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", "llama")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    convert_to_megatron(source, tmp_path / "out", Layout())
    convert_to_hf(tmp_path / "out", tmp_path / "back")
    assert set(load_file(tmp_path / "back" / "model.safetensors")) == {
        name for name in tensors if not name.endswith("inv_freq")
    }
