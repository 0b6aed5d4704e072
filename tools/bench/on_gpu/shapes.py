"""The shapes that are measured, and how many of their layers fit on one card. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.memory import moments
from megatron_vr.cluster.planner.parameters import matrix_parameters
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.known import known_architecture
from megatron_vr.parallel.layout import Layout
from tools.bench.on_gpu.place import Place

# What each name stands for; their shapes are shipped with the package.
MODELS: Final = {"4b": "Qwen/Qwen3-4B-Base", "8b": "Qwen/Qwen3-8B-Base"}

_TINY: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
}

# Of all of the card's memory: what the count of `layers_that_fit` may be wrong by, which was never
# compared with a GPU, and what the driver and other contexts hold.
MARGIN = 0.10


def whole_shape(name: str, place: Place) -> Architecture:
    """All layers of `name`; in a rehearsal so small a model that a CPU takes no time for it."""
    architecture = known_architecture(MODELS[name])
    return replace(architecture, **_TINY) if place.rehearse else architecture


def layers_that_fit(shape: Architecture, tokens: int, memory: int, smaller: int = 0) -> int:
    """The most layers of `shape` that can be trained on a card of `memory` bytes with micro-batches
    of `tokens`, nothing recomputed, by this package in bfloat16 and in FP8 and by Hugging Face
    with float32 main weights: the same number for all of them.

    `smaller` takes a quarter of them away, so often. Raises ValueError where not one fits.
    """
    usable = memory * (1 - MARGIN)
    fitting = [
        layers
        for layers in range(1, shape.layers + 1)
        if needed(replace(shape, layers=layers), tokens) <= usable
    ]
    if not fitting:
        raise ValueError(
            f"not one layer of hidden size {shape.hidden_size} with its head can be trained in "
            f"{memory / 2**30:.0f} GiB with micro-batches of {tokens} tokens"
        )
    return max(1, int(fitting[-1] * 0.75**smaller))


def needed(architecture: Architecture, tokens: int) -> int:
    """Bytes of the most demanding of the three."""
    return max(
        ours_bytes(architecture, tokens, None),
        ours_bytes(architecture, tokens, Fp8Settings(recipe="tensorwise")),
        rival_bytes(architecture, tokens),
    )


def ours_bytes(architecture: Architecture, tokens: int, fp8: Fp8Settings | None) -> int:
    """After the planner; nothing is saved here."""
    case = Case(architecture, Layout(), 1, tokens, fp8=fp8)
    return max(memory.total for memory in moments(case, 0) if memory.moment != "save")


def rival_bytes(architecture: Architecture, tokens: int) -> int:
    """Of Hugging Face's layers with Liger's kernels, counted after their sources.

    Weights and gradients in bfloat16, main weights and moments in float32 are 16 bytes a number
    while activations are there, and 20 while the optimizer works on float32 gradients. Kept for
    each layer and token in two bytes: the inputs of both norms and what they give, queries, keys
    and values before and after norm and rotation, attention's output twice (it is put in order for
    its projection), gate, up and their product. The head holds its weight's gradient twice and a
    chunk of logits; the backward pass of an MLP three times its width.
    """
    a = architecture
    numbers = matrix_parameters(a)
    queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    kept = 4 * a.hidden_size + 4 * queries + 3 * keys + 3 * a.ffn_hidden_size
    head = 2 * 2 * a.vocab_size * a.hidden_size + 2**30
    passing = 2 * tokens * 3 * a.ffn_hidden_size
    training = 16 * numbers + 2 * tokens * kept * a.layers + head + passing
    return max(training, 20 * numbers) + 2**30


def hf_fields(architecture: Architecture) -> dict[str, Any]:
    """The fields of Transformers' Qwen3Config."""
    a = architecture
    return {
        "vocab_size": a.vocab_size,
        "hidden_size": a.hidden_size,
        "intermediate_size": a.ffn_hidden_size,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads,
        "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "max_position_embeddings": a.max_positions,
        "rope_parameters": {"rope_type": "default", "rope_theta": a.rope_theta},
        "rms_norm_eps": a.norm_eps,
        "tie_word_embeddings": a.tied,
        "architectures": ["Qwen3ForCausalLM"],
    }
