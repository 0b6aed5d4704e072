"""Shipped shapes of well-known bases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vr.cluster.planner.hardware import DEVICES
from megatron_vr.cluster.planner.sampling import Server
from megatron_vr.errors import CheckpointError
from megatron_vr.models.known import known_architecture, shipped_models

# Billions of parameters, as the models' own pages state them (biases and norms are a few millions).
STATED = {
    "Qwen/Qwen2.5-1.5B-Instruct": 1.54,
    "Qwen/Qwen2.5-3B-Instruct": 3.09,
    "Qwen/Qwen2.5-7B-Instruct": 7.61,
    "Qwen/Qwen2.5-14B-Instruct": 14.7,
    "Qwen/Qwen2.5-32B-Instruct": 32.5,
    "Qwen/Qwen2.5-72B-Instruct": 72.7,
    "Qwen/Qwen3-1.7B-Base": 1.7,
    "Qwen/Qwen3-4B-Base": 4.0,
    "Qwen/Qwen3-8B-Base": 8.2,
    "Qwen/Qwen3-14B-Base": 14.8,
    "Qwen/Qwen3-32B": 32.8,
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def test_every_shipped_model_has_as_many_parameters_as_its_page_says() -> None:
    assert set(shipped_models()) == set(STATED)
    for name, billions in STATED.items():
        server = Server(known_architecture(name), DEVICES["h100"], 1, 1)
        assert server.parameters / 1e9 == pytest.approx(billions, rel=0.015), name


TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 77,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}


def test_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert known_architecture(str(tmp_path)).vocab_size == 77


def test_what_the_hub_has_left_here_comes_before_what_is_shipped(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "models--Qwen--Qwen3-8B-Base"
    snapshot = cache / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(TINY))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    assert known_architecture("Qwen/Qwen3-8B-Base").vocab_size == 77


def test_an_unknown_id_is_refused_with_what_to_do() -> None:
    with pytest.raises(CheckpointError, match=r"give a folder with its config\.json: `hf download"):
        known_architecture("someone/some-model")


def test_a_folder_that_is_not_there_is_no_id() -> None:
    with pytest.raises(CheckpointError, match="is no folder here and no id of the hub"):
        known_architecture("/data/models/mine")
