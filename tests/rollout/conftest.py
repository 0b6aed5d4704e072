from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, Qwen2Config, Qwen3Config

VOCAB = 31
CONTEXT = 48


def _tiny_model(family: str) -> PreTrainedModel:
    spread = 0.3  # of the initial weights: far from a uniform next-token distribution
    qwen = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "initializer_range": spread,
        "tie_word_embeddings": True,
    }
    gpt2 = {
        "vocab_size": VOCAB,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "initializer_range": spread,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    configs = {
        "qwen3": lambda: Qwen3Config(head_dim=8, **qwen),
        "qwen2": lambda: Qwen2Config(**qwen),
        # Its positions are absolute, so that padding must not shift them.
        "gpt2": lambda: GPT2Config(**gpt2),
    }
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(configs[family](), dtype=torch.float32).eval()


@pytest.fixture(scope="session", params=["qwen3", "qwen2", "gpt2"])
def any_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A tiny random fp32 model of 31 tokens and 48 positions; every test runs for each family."""
    return _tiny_model(request.param)


@pytest.fixture(scope="session")
def model() -> PreTrainedModel:
    """A tiny random fp32 Qwen3 of 31 tokens and 48 positions."""
    return _tiny_model("qwen3")


@pytest.fixture(scope="session")
def reference_log_probs() -> Callable[[PreTrainedModel, tuple[int, ...]], torch.Tensor]:
    """log p(next token) after each position, `[length, vocab]`, from one plain full forward."""

    def log_probs(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return torch.log_softmax(logits.double(), dim=-1)

    return log_probs
