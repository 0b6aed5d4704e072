"""Which Hugging Face tensors make which Megatron parameter: one table per family.

A table is read in both directions. Megatron names are the keys of its distributed checkpoints,
where the parameters of all layers share one name, as do those of all experts; in a Hugging Face
name `*` is the layer's number and `#` the expert's. Shapes are written in the letters of
`DIMENSIONS`. A new family is a new table in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Transform = Literal["copy", "vocab", "qkv", "gate_up"]
Split = Literal["none", "rows", "columns"]

DIMENSIONS = """
v vocabulary    h hidden size   f MLP units     d head dimension
q query heads x head dimension  k key/value heads x head dimension
e experts       m MLP units of an expert
"""


@dataclass(frozen=True)
class Weight:
    """One Megatron parameter: `sources` maps each Hugging Face name to its shape, in order.

    `split` is what tensor-parallel ranks have of it: all, or a share of its rows or columns.
    """

    megatron: str
    sources: Mapping[str, str]
    transform: Transform = "copy"
    split: Split = "none"

    @property
    def layered(self) -> bool:
        """Whether every layer has one of its own."""
        return any("*" in name for name in self.sources)

    @property
    def per_expert(self) -> bool:
        """Whether every expert of a layer has one of its own."""
        return any("#" in name for name in self.sources)


LAYER = "decoder.layers."
_EXPERT = LAYER + "mlp.experts.experts."
_HF = "model.layers.*."
_HF_EXPERT = _HF + "mlp.experts.#."

_AROUND = (
    Weight(
        "embedding.word_embeddings.weight", {"model.embed_tokens.weight": "v h"}, "vocab", "rows"
    ),
    Weight("decoder.final_layernorm.weight", {"model.norm.weight": "h"}),
    # Absent from a model whose output weight is its embedding.
    Weight("output_layer.weight", {"lm_head.weight": "v h"}, "vocab", "rows"),
)

_ATTENTION = (
    Weight(
        LAYER + "self_attention.linear_qkv.layer_norm_weight",
        {_HF + "input_layernorm.weight": "h"},
    ),
    Weight(
        LAYER + "self_attention.linear_qkv.weight",
        {
            _HF + "self_attn.q_proj.weight": "q h",
            _HF + "self_attn.k_proj.weight": "k h",
            _HF + "self_attn.v_proj.weight": "k h",
        },
        "qkv",
        "rows",
    ),
    Weight(
        LAYER + "self_attention.linear_proj.weight",
        {_HF + "self_attn.o_proj.weight": "h q"},
        split="columns",
    ),
)

_QKV_BIAS = (
    Weight(
        LAYER + "self_attention.linear_qkv.bias",
        {
            _HF + "self_attn.q_proj.bias": "q",
            _HF + "self_attn.k_proj.bias": "k",
            _HF + "self_attn.v_proj.bias": "k",
        },
        "qkv",
        "rows",
    ),
)

_QK_NORM = (
    Weight(LAYER + "self_attention.q_layernorm.weight", {_HF + "self_attn.q_norm.weight": "d"}),
    Weight(LAYER + "self_attention.k_layernorm.weight", {_HF + "self_attn.k_norm.weight": "d"}),
)

_MLP = (
    Weight(
        LAYER + "mlp.linear_fc1.layer_norm_weight",
        {_HF + "post_attention_layernorm.weight": "h"},
    ),
    Weight(
        LAYER + "mlp.linear_fc1.weight",
        {_HF + "mlp.gate_proj.weight": "f h", _HF + "mlp.up_proj.weight": "f h"},
        "gate_up",
        "rows",
    ),
    Weight(LAYER + "mlp.linear_fc2.weight", {_HF + "mlp.down_proj.weight": "h f"}, split="columns"),
)

_EXPERTS = (
    Weight(LAYER + "pre_mlp_layernorm.weight", {_HF + "post_attention_layernorm.weight": "h"}),
    Weight(LAYER + "mlp.router.weight", {_HF + "mlp.gate.weight": "e h"}),
    Weight(
        _EXPERT + "linear_fc1.weight",
        {_HF_EXPERT + "gate_proj.weight": "m h", _HF_EXPERT + "up_proj.weight": "m h"},
        "gate_up",
        "rows",
    ),
    Weight(
        _EXPERT + "linear_fc2.weight", {_HF_EXPERT + "down_proj.weight": "h m"}, split="columns"
    ),
)

FAMILIES = {
    "llama": _AROUND + _ATTENTION + _MLP,
    "qwen2": _AROUND + _ATTENTION + _QKV_BIAS + _MLP,
    "qwen3": _AROUND + _ATTENTION + _QK_NORM + _MLP,
    "qwen3_moe": _AROUND + _ATTENTION + _QK_NORM + _EXPERTS,
}
