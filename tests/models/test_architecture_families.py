"""A Llama's and a Qwen3-MoE's config.json is honoured in full or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Experts, parse_architecture

LLAMA32_3B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 24,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}

QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def llama3(**changes: Any) -> dict[str, Any]:
    """A change of Llama 3.2's scaled frequencies."""
    return {"rope_scaling": LLAMA32_3B["rope_scaling"] | changes}  # type: ignore[operator]


def test_published_llama_and_qwen3_moe_configs_are_read() -> None:
    llama = parse_architecture(LLAMA32_3B, "config.json")
    assert (llama.rope_theta, llama.rope_factor, llama.tied) == (5e5, 32.0, True)
    assert (llama.head_dim, llama.qk_norm, llama.qkv_bias) == (128, False, False)
    assert llama.experts is None
    qwen = parse_architecture(QWEN3_30B_A3B, "config.json")
    assert qwen.experts == Experts(count=128, per_token=8, ffn_hidden_size=768, normalised=True)
    assert (qwen.ffn_hidden_size, qwen.rope_factor) == (6144, None)
    assert (qwen.qk_norm, qwen.qkv_bias) == (True, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForRewardModel"]}, "architectures=.*Reward"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"pretraining_tp": 2}, "pretraining_tp=2.*set it to 1"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        (llama3(low_freq_factor=2.0), "rope_scaling=.*'low_freq_factor': 2.0"),
        (llama3(high_freq_factor=8.0), "rope_scaling=.*'high_freq_factor': 8.0"),
        (llama3(original_max_position_embeddings=4096), "rope_scaling=.*embeddings': 4096"),
        (llama3(factor=None), "factor=None"),
        (llama3(attention_factor=2.0), "rope_scaling=.*attention_factor"),
        # Transformers lets this one win.
        ({"original_max_position_embeddings": 4096}, "rope_scaling=.*embeddings': 4096"),
        (llama3(rope_type="longrope"), "rope_scaling=.*longrope"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_scaling=.*rope_parameters differs"),
    ],
    ids=str,
)
def test_a_llama_that_would_not_be_computed_is_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_architecture(LLAMA32_3B | change, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2.*experts in every layer"),
        ({"mlp_only_layers": [3]}, r"mlp_only_layers=\[3\].*experts in every layer"),
        ({"shared_expert_intermediate_size": 512}, "shared_expert_intermediate_size=512"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"num_local_experts": 64}, "num_experts=128.*num_local_experts=64"),
        ({"num_experts_per_tok": 129}, "num_experts_per_tok=129.*128"),
        ({"num_experts_per_tok": 1}, "norm_topk_prob=True.*num_experts_per_tok=1"),
        ({"norm_topk_prob": 1}, "norm_topk_prob=1"),
        # Nothing tells these models which layers slide: all do.
        (
            {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 48},
            "sliding_window=4096",
        ),
        (llama3(), "rope_scaling=.*llama3.*of a llama model"),
    ],
    ids=str,
)
def test_experts_that_would_not_be_computed_are_refused(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse_architecture(QWEN3_30B_A3B | change, "config.json")


def test_both_spellings_of_the_number_of_experts_are_read() -> None:
    other = {"num_local_experts" if k == "num_experts" else k: v for k, v in QWEN3_30B_A3B.items()}
    assert parse_architecture(other, "") == parse_architecture(QWEN3_30B_A3B, "")


def test_frequencies_are_read_from_both_generations_of_fields() -> None:
    old = parse_architecture(LLAMA32_3B, "")
    rope = LLAMA32_3B["rope_scaling"] | {"rope_theta": 500000.0}  # type: ignore[operator]
    new = {k: v for k, v in LLAMA32_3B.items() if k not in ("rope_scaling", "rope_theta")}
    assert parse_architecture(new | {"rope_parameters": rope}, "") == old
    # Transformers' default, which early Llama models count on.
    assert parse_architecture(new, "").rope_theta == 10_000.0
