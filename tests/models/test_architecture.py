"""A config.json is honoured in full or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig

from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture, parse_architecture, read_architecture

QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 151936,
}

QWEN25_7B = {
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}


def test_published_qwen3_and_qwen25_configs_are_read() -> None:
    qwen3 = parse_architecture(QWEN3_8B, "config.json")
    assert qwen3 == Architecture(
        family="qwen3",
        hidden_size=4096,
        ffn_hidden_size=12288,
        layers=36,
        heads=32,
        kv_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_positions=40960,
        rope_theta=1e6,
        norm_eps=1e-6,
        tied=False,
    )
    assert (qwen3.qk_norm, qwen3.qkv_bias) == (True, False)
    qwen25 = parse_architecture(QWEN25_7B, "config.json")
    assert (qwen25.head_dim, qwen25.kv_heads) == (128, 4)
    assert (qwen25.qk_norm, qwen25.qkv_bias) == (False, True)


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig])
def test_the_files_that_the_installed_transformers_writes_are_read(
    config_class: Any, tmp_path: Path
) -> None:
    config = config_class(rope_theta=5e5, num_key_value_heads=4, tie_word_embeddings=True)
    config.save_pretrained(tmp_path)
    found = read_architecture(tmp_path)
    assert (found.rope_theta, found.kv_heads, found.tied) == (5e5, 4, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mistral"}, "model_type='mistral'"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "architectures=.*Classification"),
        ({"model_type": None}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map="),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling=.*yarn"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling=.*linear"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}},
            "rope_parameters=.*dynamic",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "rope_parameters=.*partial",
        ),
        ({"rope_theta": None}, "rope_theta=None must be a positive number"),
        (
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 35},
            "sliding_window=4096",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types="),
        ({"head_dim": None}, "head_dim"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers=1.5"),
        ({"vocab_size": "many"}, "vocab_size='many'"),
        ({"num_key_value_heads": 5}, "num_key_value_heads=5"),
    ],
    ids=str,
)
def test_what_would_not_be_computed_is_refused_by_name_and_value(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_architecture(QWEN3_8B | change, "config.json")


def test_settings_that_change_nothing_are_accepted() -> None:
    harmless = {
        # Windows start behind the last layer.
        "use_sliding_window": True,
        "sliding_window": 4096,
        "max_window_layers": 36,
        "rope_scaling": {"rope_type": "default"},
        "attention_dropout": 0,
    }
    assert parse_architecture(QWEN3_8B | harmless, "") == parse_architecture(QWEN3_8B, "")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "not valid JSON"), ("[1]", "JSON object")],
)
def test_a_missing_or_broken_config_is_named(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        read_architecture(tmp_path)


def test_a_boolean_is_no_count() -> None:
    with pytest.raises(CheckpointError, match="hidden_size=True"):
        parse_architecture(json.loads(json.dumps(QWEN3_8B | {"hidden_size": True})), "")
