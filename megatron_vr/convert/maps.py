"""Which Hugging Face tensors make which Megatron parameter: one table per family.

A table is read in both directions. Megatron names are the keys of its distributed checkpoints,
where the parameters of all layers share one name; `*` in a Hugging Face name is the layer number.
Shapes are written in the letters of `DIMENSIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from megatron_vr.models.architecture import Architecture

Transform = Literal["copy", "vocab", "qkv", "gate_up"]

DIMENSIONS = """
v vocabulary    h hidden size   f MLP units     d head dimension
q query heads x head dimension  k key/value heads x head dimension
"""


@dataclass(frozen=True)
class Weight:
    """One Megatron parameter: `sources` maps each Hugging Face name to its shape, in order."""

    megatron: str
    sources: Mapping[str, str]
    transform: Transform = "copy"

    @property
    def layered(self) -> bool:
        """Whether every layer has one of its own."""
        return any("*" in name for name in self.sources)


_LAYER = "decoder.layers."
_HF = "model.layers.*."

_DENSE = (
    Weight("embedding.word_embeddings.weight", {"model.embed_tokens.weight": "v h"}, "vocab"),
    Weight(
        _LAYER + "self_attention.linear_qkv.layer_norm_weight",
        {_HF + "input_layernorm.weight": "h"},
    ),
    Weight(
        _LAYER + "self_attention.linear_qkv.weight",
        {
            _HF + "self_attn.q_proj.weight": "q h",
            _HF + "self_attn.k_proj.weight": "k h",
            _HF + "self_attn.v_proj.weight": "k h",
        },
        "qkv",
    ),
    Weight(
        _LAYER + "self_attention.linear_proj.weight",
        {_HF + "self_attn.o_proj.weight": "h q"},
    ),
    Weight(
        _LAYER + "mlp.linear_fc1.layer_norm_weight",
        {_HF + "post_attention_layernorm.weight": "h"},
    ),
    Weight(
        _LAYER + "mlp.linear_fc1.weight",
        {_HF + "mlp.gate_proj.weight": "f h", _HF + "mlp.up_proj.weight": "f h"},
        "gate_up",
    ),
    Weight(_LAYER + "mlp.linear_fc2.weight", {_HF + "mlp.down_proj.weight": "h f"}),
    Weight("decoder.final_layernorm.weight", {"model.norm.weight": "h"}),
)

_QWEN2 = (
    Weight(
        _LAYER + "self_attention.linear_qkv.bias",
        {
            _HF + "self_attn.q_proj.bias": "q",
            _HF + "self_attn.k_proj.bias": "k",
            _HF + "self_attn.v_proj.bias": "k",
        },
        "qkv",
    ),
)

_QWEN3 = (
    Weight(_LAYER + "self_attention.q_layernorm.weight", {_HF + "self_attn.q_norm.weight": "d"}),
    Weight(_LAYER + "self_attention.k_layernorm.weight", {_HF + "self_attn.k_norm.weight": "d"}),
)

# Absent from a model whose output weight is its embedding.
_OUTPUT = (Weight("output_layer.weight", {"lm_head.weight": "v h"}, "vocab"),)

FAMILIES = {"qwen2": _DENSE + _QWEN2 + _OUTPUT, "qwen3": _DENSE + _QWEN3 + _OUTPUT}


def weight_map(architecture: Architecture) -> dict[str, Weight]:
    """The table of a model, by Megatron name."""
    rows = FAMILIES[architecture.family]
    return {row.megatron: row for row in rows if not (architecture.tied and row in _OUTPUT)}


def dimensions(architecture: Architecture) -> dict[str, int]:
    """Sizes of the letters in a table's shapes."""
    return {
        "v": architecture.vocab_size,
        "h": architecture.hidden_size,
        "f": architecture.ffn_hidden_size,
        "d": architecture.head_dim,
        "q": architecture.heads * architecture.head_dim,
        "k": architecture.kv_heads * architecture.head_dim,
    }


def source_shapes(
    weight: Weight, layer: int | None, architecture: Architecture
) -> dict[str, tuple[int, ...]]:
    """The Hugging Face names and shapes behind one parameter of one layer (None: not layered)."""
    sizes = dimensions(architecture)
    return {
        name.replace("*", str(layer)): tuple(sizes[letter] for letter in shape.split())
        for name, shape in weight.sources.items()
    }


def parameters(architecture: Architecture) -> Iterator[tuple[Weight, int | None]]:
    """Every (parameter, layer) of a model, layers in order."""
    rows = weight_map(architecture).values()
    for row in rows:
        if not row.layered:
            yield row, None
    for layer in range(architecture.layers):
        for row in rows:
            if row.layered:
                yield row, layer


def expected_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the model's Hugging Face folder."""
    expected: dict[str, tuple[int, ...]] = {}
    for weight, layer in parameters(architecture):
        expected.update(source_shapes(weight, layer, architecture))
    return expected


_NUMBERED = re.compile(r"^decoder\.layers\.(\d+)\.")


def split_layer(key: str) -> tuple[str, int | None]:
    """A checkpoint key without its layer number, if it has one, and that number."""
    found = _NUMBERED.match(key)
    if found is None:
        return key, None
    return _LAYER + key[found.end() :], int(found.group(1))
