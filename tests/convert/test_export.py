"""A checkpoint becomes the Hugging Face folder it came from, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.export import export_hf
from megatron_vr.convert.hf_reader import HFWeights
from megatron_vr.convert.load import load_hf
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import read_architecture
from megatron_vr.parallel.layout import Layout
from tests.models.reference import tiny_model

COMPANIONS = {
    "tokenizer.json": "{}",
    "generation_config.json": '{"eos_token_id": 3}',
    "chat_template.jinja": "{{ messages }}",
    "LICENSE": "free",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, megatron: None) -> tuple[Path, Path]:
    """A Hugging Face folder, and a Megatron checkpoint of the model loaded from it."""
    from megatron.core import dist_checkpointing

    from megatron_vr.models.gpt import build_model

    folder = tmp_path_factory.mktemp("export")
    source, checkpoint = folder / "hf", folder / "checkpoint"
    tiny_model("qwen3", True, num_hidden_layers=2).save_pretrained(source)
    for name, content in COMPANIONS.items():
        (source / name).write_text(content)
    architecture = read_architecture(source)
    models = build_model(
        architecture,
        Layout(),
        spec="plain",
        dtype="float32",
        recompute="none",
        log_prob_chunk=8,
    )
    load_hf(models, source, architecture)
    checkpoint.mkdir()
    dist_checkpointing.save({"model": models[0].sharded_state_dict()}, str(checkpoint))
    return source, checkpoint


def export(saved: tuple[Path, Path], destination: Path, **changes: object) -> None:
    source, checkpoint = saved
    options = {"dtype": "float32"} | changes
    export_hf(checkpoint, read_architecture(source), source, destination, **options)  # type: ignore[arg-type]


def test_an_export_is_the_source_bit_for_bit(saved: tuple[Path, Path], tmp_path: Path) -> None:
    export(saved, tmp_path / "out")
    expected = load_file(saved[0] / "model.safetensors")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].equal(tensor), name


def test_an_export_carries_configuration_tokenizer_template_and_licence(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()  # an empty folder may be there already
    export(saved, tmp_path / "out", dtype="bfloat16")
    for name, content in COMPANIONS.items():
        assert (tmp_path / "out" / name).read_text() == content
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((saved[0] / "config.json").read_text())
    assert written == source | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    tensors = load_file(tmp_path / "out" / "model.safetensors").values()
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16}


def test_transformers_loads_an_export_with_the_same_logits(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    export(saved, tmp_path / "out")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
            for folder in (saved[0], tmp_path / "out")
        ]
    assert logits[0].equal(logits[1])


def test_a_large_export_is_sharded_with_an_index(saved: tuple[Path, Path], tmp_path: Path) -> None:
    export(saved, tmp_path / "out", shard_bytes=60_000)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    expected = load_file(saved[0] / "model.safetensors")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    with HFWeights(tmp_path / "out") as weights:
        assert weights.names() == set(expected)
        assert all(weights.tensor(name).equal(expected[name]) for name in expected)


def test_an_export_needs_neither_megatron_nor_a_process_group(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    source, checkpoint = saved
    code = f"""
import sys
from megatron_vr.convert.export import export_hf
from megatron_vr.models.architecture import read_architecture
export_hf({str(checkpoint)!r}, read_architecture({str(source)!r}), {str(source)!r},
          {str(tmp_path / "out")!r}, "float32")
print("megatron.core" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_folder_that_is_not_empty_is_left_alone(saved: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        export(saved, tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious"]


def test_a_failed_export_leaves_nothing_behind(
    saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("megatron_vr.convert.export.write_tensors", fail)
    with pytest.raises(OSError, match="disk full"):
        export(saved, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_checkpoint_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a finished Megatron checkpoint"):
        export((saved[0], tmp_path / "empty"), tmp_path / "out")


def test_a_checkpoint_of_another_model_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    tiny_model("qwen2", True, num_hidden_layers=2).save_pretrained(tmp_path / "qwen2")
    with pytest.raises(CheckpointError, match=r"q_layernorm|k_layernorm|linear_qkv\.bias"):
        export((tmp_path / "qwen2", saved[1]), tmp_path / "out")
    tiny_model("qwen3", True, num_hidden_layers=3).save_pretrained(tmp_path / "deeper")
    with pytest.raises(CheckpointError, match="layers"):
        export((tmp_path / "deeper", saved[1]), tmp_path / "out")
    architecture = replace(read_architecture(saved[0]), rope_theta=7.0)
    with pytest.raises(CheckpointError, match="another architecture"):
        export_hf(saved[1], architecture, saved[0], tmp_path / "out", "float32")


def test_an_unknown_precision_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dtype='int8'"):
        export(saved, tmp_path / "out", dtype="int8")
