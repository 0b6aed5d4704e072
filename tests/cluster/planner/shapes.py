"""Models that the planner's tests share."""

from __future__ import annotations

from megatron_vr.models.architecture import Architecture

SMALL = Architecture(
    family="qwen3",
    hidden_size=64,
    ffn_hidden_size=192,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=1000,
    max_positions=4096,
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=False,
)
