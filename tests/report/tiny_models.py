"""Small models for the pages of synthetic runs."""

from __future__ import annotations

from pathlib import Path

from megatron_vr.problems.toy_tokenizer import make_tokenizer


def write_model(folder: Path, seed: int) -> Path:
    """A Qwen3 model of one layer with random weights and the toy tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
