"""Tiny Hugging Face models with nothing at its default value: the reference for Megatron's."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

# Odd, so that two tensor ranks must pad it.
VOCABULARY = 131

# What only some families have.
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "qwen3_moe": {
        "head_dim": 24,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


def tiny_model(family: str, tied: bool, seed: int = 0, **changes: Any) -> Any:
    """A random float32 model whose norms and biases are random too."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "rope_theta": 5e4,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
        "initializer_range": 0.15,
    }
    config = AutoConfig.for_model(family, **shape | _OWN[family] | changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
    return model.float().eval()


def label_log_probs(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """log p(ids[t + 1] | ids[..t]) [length - 1] of one sequence, by dense float32 log_softmax."""
    logits = model(ids[None]).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]


def save_gradients(model: Any, folder: Path) -> None:
    """The model's gradients, saved as if they were its weights, under the names that those have."""
    gradients = deepcopy(model)
    with torch.no_grad():
        for kept, parameter in zip(gradients.parameters(), model.parameters(), strict=True):
            kept.copy_(parameter.grad)
    gradients.save_pretrained(folder)
