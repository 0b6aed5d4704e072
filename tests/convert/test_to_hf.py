"""A checkpoint, also one of a training, becomes a Hugging Face folder or nothing at all."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_vr.convert.hf_reader import HFWeights
from megatron_vr.convert.load import load_hf
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import read_architecture
from megatron_vr.parallel.layout import Layout
from tests.convert.stored import assert_same_bits, assert_same_companions, write_folder

SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, megatron: None) -> tuple[Path, Path]:
    """A Hugging Face folder, and a checkpoint that Megatron saved of the model loaded from it."""
    from megatron.core import dist_checkpointing

    from megatron_vr.models.gpt import build_model

    folder = tmp_path_factory.mktemp("export")
    source, checkpoint = write_folder(folder / "hf", tied=True), folder / "checkpoint"
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


def export(saved: tuple[Path, Path], destination: Path, **options: Any) -> None:
    convert_to_hf(saved[1], destination, base=saved[0], **options)


def test_a_checkpoint_of_megatron_is_the_source_bit_for_bit(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()  # an empty folder may be there already
    export(saved, tmp_path / "out")
    assert_same_bits(saved[0], tmp_path / "out")
    assert_same_companions(saved[0], tmp_path / "out")


def test_a_change_of_precision_is_stated_in_the_configuration(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    export(saved, tmp_path / "out", dtype="bfloat16")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    source = json.loads((saved[0] / "config.json").read_text())
    assert written == source | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}
    expected = load_file(saved[0] / SINGLE)
    for name, tensor in load_file(tmp_path / "out" / SINGLE).items():
        assert tensor.equal(expected[name].bfloat16()), name


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
    expected = load_file(saved[0] / SINGLE)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in expected.values())
    assert HFWeights(tmp_path / "out").names() == set(expected)
    assert_same_bits(saved[0], tmp_path / "out")
    with safe_open(tmp_path / "out" / shards[0], framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_export_needs_neither_megatron_nor_a_process_group(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    source, checkpoint = saved
    code = f"""
import sys
from megatron_vr.convert.to_hf import convert_to_hf
convert_to_hf({str(checkpoint)!r}, {str(tmp_path / "out")!r}, base={str(source)!r})
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


def test_an_unfinished_checkpoint_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a finished Megatron checkpoint"):
        export((saved[0], tmp_path / "empty"), tmp_path / "out")


def test_a_checkpoint_without_its_companions_asks_for_the_base(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="--base"):
        convert_to_hf(saved[1], tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [
        ("qwen2", 2, r"lacks parameter .*linear_qkv\.bias"),
        ("llama", 2, r"has unknown parameter .*layernorm"),
        ("qwen3", 3, "not of a model of 3 layers"),
        ("qwen3", 1, "not of a model of 1 layers"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(
    family: str, layers: int, message: str, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_folder(tmp_path / "other", family, True, num_hidden_layers=layers)
    with pytest.raises(CheckpointError, match=message):
        export((other, saved[1]), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_values_beyond_the_asked_precision_are_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    tensors = load_file(source / SINGLE)
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, source / SINGLE)
    convert_to_megatron(source, tmp_path / "m", Layout())
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values beyond the range"):
        convert_to_hf(tmp_path / "m", tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    convert_to_hf(tmp_path / "m", tmp_path / "out", dtype="bfloat16")


def test_an_unknown_precision_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="dtype='int8'"):
        export(saved, tmp_path / "out", dtype="int8")


def test_a_damaged_file_is_named_and_nothing_is_left(
    saved: tuple[Path, Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "damaged"
    checkpoint.mkdir()
    for path in saved[1].iterdir():
        content = path.read_bytes()
        cut = path.suffix == ".distcp" and path.name.startswith("__0_0")
        (checkpoint / path.name).write_bytes(content[: len(content) // 2] if cut else content)
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp: .* cannot be read"):
        export((saved[0], checkpoint), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this code ran",))


def test_a_table_of_contents_that_holds_code_is_not_run(
    saved: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / ".metadata").write_bytes(pickle.dumps(_Code()))
    with pytest.raises(CheckpointError, match="has no place in a table of contents"):
        export((saved[0], tmp_path / "bad"), tmp_path / "out")
    assert "this code ran" not in capsys.readouterr().out
