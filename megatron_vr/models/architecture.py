"""The shape of a model, read from the `config.json` of a Hugging Face folder.

Plain JSON is read; code that a folder may carry is never run. Every setting that changes what the
model computes is either honoured or refused (see `config_fields`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.errors import CheckpointError
from megatron_vr.models.config_fields import check_fields, count, flag, number, refuse

# Transformers' own, for a file that does not state it.
DEFAULT_ROPE_THETA = 10_000.0

# Of the scaled frequencies of Llama 3 Megatron computes these, with any factor.
_LLAMA3 = {
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 8192,
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
    scaled frequencies. Where there are `experts`, every layer has them in place of its MLP, and
    `ffn_hidden_size` is that of no layer.
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
        return self.family in ("qwen3", "qwen3_moe")


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
    check_fields(config, where)
    layers = count(config, "num_hidden_layers", where)
    _check_full_attention(config, layers, where)
    hidden = count(config, "hidden_size", where)
    heads = count(config, "num_attention_heads", where)
    rope_theta, rope_factor = _rope(config, where)
    # Transformers reads a null here as "as many as query heads".
    stated = config.get("num_key_value_heads") is not None
    kv_heads = count(config, "num_key_value_heads", where) if stated else heads
    if heads % kv_heads:
        raise CheckpointError(
            f"{where}: num_attention_heads={heads} is not a multiple of "
            f"num_key_value_heads={kv_heads}."
        )
    return Architecture(
        family=config["model_type"],
        hidden_size=hidden,
        ffn_hidden_size=count(config, "intermediate_size", where),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_head_dim(config, hidden, heads, where),
        vocab_size=count(config, "vocab_size", where),
        max_positions=count(config, "max_position_embeddings", where),
        rope_theta=rope_theta,
        norm_eps=number(config, "rms_norm_eps", where),
        tied=flag(config, "tie_word_embeddings", where),
        rope_factor=rope_factor,
        experts=_experts(config, where) if config["model_type"] == "qwen3_moe" else None,
    )


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int, where: str) -> int:
    if config.get("head_dim") is not None:
        return count(config, "head_dim", where)
    if config["model_type"] == "qwen3":
        raise CheckpointError(f"{where}: head_dim is missing; a qwen3 model states it.")
    if hidden % heads:
        raise CheckpointError(
            f"{where}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}, "
            "and head_dim is not given."
        )
    return hidden // heads


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, float | None]:
    """The base of the frequencies, and the factor of Llama 3's scaling if they are scaled.

    Both stand in `rope_parameters` as Transformers 5 writes it, or in `rope_theta` and
    `rope_scaling`.
    """
    given = {
        name: rope for name in ("rope_scaling", "rope_parameters") if (rope := config.get(name))
    }
    name, rope = next(iter(given.items()), ("rope_parameters", {}))
    if any(other != rope for other in given.values()):
        refuse(where, name, rope, "rope_parameters differs; keep one")
    if not isinstance(rope, Mapping):
        refuse(where, name, rope, "it must be an object")
    theta = rope.get("rope_theta", config.get("rope_theta", DEFAULT_ROPE_THETA))
    base = number({"rope_theta": theta}, "rope_theta", where)
    kind = rope.get("rope_type", rope.get("type", "default"))
    rest = {key: rope[key] for key in rope if key not in ("rope_type", "type", "rope_theta")}
    if kind == "llama3" and config["model_type"] == "llama":
        return base, _llama3_factor(config, name, rest, where)
    if kind != "default":
        refuse(where, name, dict(rope), "only type 'default' is, and 'llama3' of a llama model")
    if rest:
        refuse(where, name, dict(rope), f"{min(rest)!r} is unknown with type 'default'")
    return base, None


def _llama3_factor(
    config: Mapping[str, Any], name: str, scaling: dict[str, Any], where: str
) -> float:
    # As in Transformers: what stands beside the object wins, and else is the whole context.
    length = "original_max_position_embeddings"
    scaling.setdefault(length, config.get("max_position_embeddings"))
    scaling[length] = config.get(length, scaling[length])
    if scaling != _LLAMA3 | {"factor": scaling.get("factor")}:
        refuse(where, name, scaling, f"only {_LLAMA3} is, with any factor; use another model")
    return number(scaling, "factor", where)


def _check_full_attention(config: Mapping[str, Any], layers: int, where: str) -> None:
    kinds = config.get("layer_types")
    if kinds is not None and kinds != ["full_attention"] * layers:
        found = sorted(set(map(str, kinds))) if isinstance(kinds, list) else kinds
        refuse(where, "layer_types", found, f"only 'full_attention' in all {layers} layers is")
    window = config.get("sliding_window")
    if not config.get("use_sliding_window") or window is None:
        return
    # The dense models slide in the layers from max_window_layers on, those with experts in all.
    first = config.get("max_window_layers")
    whole = kinds is not None or (isinstance(first, int) and first >= layers)
    if config["model_type"] == "qwen3_moe" or not whole:
        refuse(where, "sliding_window", window, "only attention to all tokens is")


def _experts(config: Mapping[str, Any], where: str) -> Experts:
    spellings = [name for name in ("num_experts", "num_local_experts") if name in config]
    counts = [count(config, name, where) for name in spellings or ["num_experts"]]
    if len(set(counts)) > 1:
        refuse(where, "num_experts", counts[0], f"num_local_experts={counts[1]} differs; keep one")
    experts = Experts(
        count=counts[0],
        per_token=count(config, "num_experts_per_tok", where),
        ffn_hidden_size=count(config, "moe_intermediate_size", where),
        normalised=flag(config, "norm_topk_prob", where),
    )
    if experts.per_token > experts.count:
        refuse(where, "num_experts_per_tok", experts.per_token, f"there are {experts.count} only")
    if experts.per_token == 1 and experts.normalised:
        instead = "with num_experts_per_tok=1 its router could not learn; use another model"
        refuse(where, "norm_topk_prob", True, instead)
    return experts
