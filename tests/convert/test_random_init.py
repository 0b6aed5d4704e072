"""Random models are Qwen3 folders that depend on the seed and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.hf_reader import HFWeights, check_tensors
from megatron_vr.convert.random_init import write_random_model
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import read_architecture

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "layers": 8,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 24,
    "max_positions": 96,
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<eos>", "up", "down", "left"])}
    backend = Tokenizer(WordLevel(words, unk_token="<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_folder_has_the_asked_shape_and_a_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_random_model(SHAPE, tokenizer, tmp_path / "model", seed=1)
    architecture = read_architecture(tmp_path / "model")
    found = {name: getattr(architecture, name) for name in SHAPE}
    assert found == SHAPE
    assert (architecture.family, architecture.vocab_size) == ("qwen3", 4)
    stored = HFWeights(tmp_path / "model")
    check_tensors(stored, architecture)
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (again.get_vocab(), again.eos_token_id) == (tokenizer.get_vocab(), 0)


def test_weights_depend_on_the_seed_alone(tokenizer: Any, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_random_model(SHAPE, tokenizer, tmp_path / "a", seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    # A pydantic model is handed over as pairs.
    write_random_model(SHAPE.items(), tmp_path / "tokenizer", tmp_path / "b", seed=1)
    write_random_model(SHAPE, tokenizer, tmp_path / "c", seed=2)
    assert torch.get_rng_state().equal(state), "the caller's random state moved"
    a, b, c = (weights(tmp_path / name) for name in "abc")
    assert all(a[name].equal(b[name]) for name in a)
    assert not a["model.embed_tokens.weight"].equal(c["model.embed_tokens.weight"])


def test_outputs_into_the_residual_stream_shrink_with_depth(tokenizer: Any, tmp_path: Path) -> None:
    write_random_model(SHAPE, tokenizer, tmp_path / "model", seed=1)
    tensors = weights(tmp_path / "model")
    for layer in range(SHAPE["layers"]):
        prefix = f"model.layers.{layer}."
        for name, deviation in (
            ("self_attn.q_proj", 0.02),
            ("mlp.up_proj", 0.02),
            ("self_attn.o_proj", 0.02 / math.sqrt(16)),
            ("mlp.down_proj", 0.02 / math.sqrt(16)),
        ):
            found = float(tensors[f"{prefix}{name}.weight"].std())
            assert found == pytest.approx(deviation, rel=0.05), f"{prefix}{name}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 3}, r"model\.random\.width is unknown"),
        ({"vocab_size": 2}, "vocab_size=2 is less than the tokenizer's 4"),
    ],
)
def test_fields_that_make_no_model_are_refused(
    change: dict[str, Any], message: str, tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        write_random_model(SHAPE | change, tokenizer, tmp_path / "model", seed=1)


def test_a_missing_field_is_named(tokenizer: Any, tmp_path: Path) -> None:
    short = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    with pytest.raises(SettingsError, match=r"model\.random\.head_dim is missing"):
        write_random_model(short, tokenizer, tmp_path / "model", seed=1)


def test_a_folder_in_use_is_left_alone(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        write_random_model(SHAPE, tokenizer, tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
