"""The shape of a model, read from the `config.json` of a Hugging Face folder.

Plain JSON is read; code that a folder may carry is never run. Every setting that changes what the
model computes is either honoured or refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.errors import CheckpointError

FAMILIES = ("qwen2", "qwen3")

# Settings that change the computation, with the values this package computes.
_HONOURED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, None),
    "hidden_dropout": (0, None),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1, None),
    "num_experts": (0, None),
    "num_local_experts": (0, None),
    "n_routed_experts": (0, None),
    "num_nextn_predict_layers": (0, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "logit_scale": (1, None),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (False, None),
}


@dataclass(frozen=True)
class Experts:
    """The MLPs of every layer, `per_token` of `count` of which a router chooses for each token.

    `ffn_hidden_size` is one expert's width. With `normalised` the probabilities of a token's
    chosen experts sum to one.
    """

    count: int
    per_token: int
    ffn_hidden_size: int
    normalised: bool


@dataclass(frozen=True)
class Architecture:
    """A decoder with RMSNorm, SwiGLU, rotary positions and grouped-query attention.

    `heads`, `kv_heads` and `head_dim` are independent of `hidden_size`. Vocabulary and positions
    are counts, `rope_theta` the base of the rotary frequencies; `rope_factor` is that of Llama 3's
    scaled frequencies. Where there are `experts`, every layer has them in place of its MLP.
    """

    family: str
    hidden_size: int
    ffn_hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    norm_eps: float
    tied: bool
    rope_factor: float | None = None
    experts: Experts | None = None

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections add a bias (Qwen2)."""
        return self.family == "qwen2"

    @property
    def qk_norm(self) -> bool:
        """Whether each head's queries and keys are normalised (Qwen3)."""
        return self.family == "qwen3"


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture of the Hugging Face model in `folder`.

    Raises CheckpointError when `config.json` is missing, unreadable, of an unknown family, or asks
    for something that would not be computed.
    """
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} does not exist; give the folder of a Hugging Face model."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not hold a JSON object.")
    return parse_architecture(config, str(path))


def parse_architecture(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that the settings `config` describe; `where` names them in errors."""
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type={family!r} is not supported; supported are {', '.join(FAMILIES)}."
        )
    for name, values in _HONOURED.items():
        if name in config and config[name] not in values:
            _refuse(where, name, config[name])
    layers = _count(config, "num_hidden_layers", where)
    _check_full_attention(config, layers, where)
    hidden, heads = (
        _count(config, "hidden_size", where),
        _count(config, "num_attention_heads", where),
    )
    # Transformers reads a null here as "as many as query heads".
    stated = config.get("num_key_value_heads") is not None
    kv_heads = _count(config, "num_key_value_heads", where) if stated else heads
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads={heads} is not a multiple of "
            f"num_key_value_heads={kv_heads}."
        )
    return Architecture(
        family=family,
        hidden_size=hidden,
        ffn_hidden_size=_count(config, "intermediate_size", where),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(config, hidden, heads, where),
        vocab_size=_count(config, "vocab_size", where),
        max_positions=_count(config, "max_position_embeddings", where),
        rope_theta=_rope_theta(config, where),
        norm_eps=_number(config, "rms_norm_eps", where),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _refuse(where: str, name: str, value: Any) -> None:
    raise CheckpointError(
        f"{where}: {name}={value!r} is not supported and would be ignored; use another model."
    )


def _number(config: Mapping[str, Any], name: str, where: str) -> float:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise CheckpointError(f"{where}: {name}={value!r} must be a positive number.")
    return float(value)


def _count(config: Mapping[str, Any], name: str, where: str) -> int:
    value = _number(config, name, where)
    if value != int(value):
        raise CheckpointError(f"{where}: {name}={value!r} must be a whole number.")
    return int(value)


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int, where: str) -> int:
    if config.get("head_dim") is not None:
        return _count(config, "head_dim", where)
    if config["model_type"] == "qwen3":
        raise CheckpointError(f"{where}: head_dim is missing; a qwen3 model states it.")
    if hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}, "
            "and head_dim is not given."
        )
    return hidden // heads


def _rope_theta(config: Mapping[str, Any], where: str) -> float:
    """From `rope_theta`, or from `rope_parameters` as Transformers 5 writes it."""
    theta = config.get("rope_theta")
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            _refuse(where, name, rope)
        kind = rope.get("rope_type", rope.get("type", "default"))
        unknown = set(rope) - {"rope_type", "type", "rope_theta"}
        if kind != "default" or unknown:
            _refuse(where, name, dict(rope))
        theta = rope.get("rope_theta", theta)
    return _number({"rope_theta": theta}, "rope_theta", where)


def _check_full_attention(config: Mapping[str, Any], layers: int, where: str) -> None:
    kinds = config.get("layer_types")
    if kinds is not None and any(kind != "full_attention" for kind in kinds):
        _refuse(where, "layer_types", sorted(set(kinds)))
    # Qwen slides only in the layers from max_window_layers on.
    slides = config.get("use_sliding_window") and config.get("sliding_window") is not None
    if slides and kinds is None and config.get("max_window_layers", 0) < layers:
        _refuse(where, "sliding_window", config["sliding_window"])
