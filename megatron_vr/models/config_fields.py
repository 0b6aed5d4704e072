"""What becomes of every field of a `config.json`, by family.

A Hugging Face model computes what the fields of its configuration class say, and Transformers
ignores most others. Each of these fields is read, or must have a value that is computed here, or
changes no log-prob; what else stands in a file is ignored as Transformers does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from megatron_vr.errors import CheckpointError


@dataclass(frozen=True)
class Fixed:
    """The values that a field may have, and what to do about another."""

    values: tuple[Any, ...]
    remedy: str = "use another model"


@dataclass(frozen=True)
class Fields:
    """The fields of one family; no field is in two of the three groups.

    `read` become the Architecture or are checked with others, `fixed` may be absent, `inert`
    change no log-prob. `causal_lm` is the class that `architectures` must name.
    """

    causal_lm: str
    read: frozenset[str]
    fixed: Mapping[str, Fixed]
    inert: frozenset[str]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_READ = _names(
    """
    model_type architectures hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim vocab_size max_position_embeddings rms_norm_eps
    tie_word_embeddings rope_parameters rope_scaling rope_theta layer_types
    """
)
_WINDOWS = _names("use_sliding_window sliding_window")
_EXPERTS = _names(
    "num_experts num_local_experts num_experts_per_tok moe_intermediate_size norm_topk_prob"
)

# The weights are read in the precision that the settings ask for, and the embedding of the padding
# token differs in training only, where nothing is padded. Losses are this package's own.
_INERT = _names(
    """
    _name_or_path transformers_version dtype torch_dtype initializer_range use_cache return_dict
    output_attentions output_hidden_states chunk_size_feed_forward problem_type id2label label2id
    bos_token_id eos_token_id pad_token_id
    """
)
_ROUTER_LOSS = _names("output_router_logits router_aux_loss_coef")

_DENSE = Fixed((0, None), "such experts are not computed; use another model")

# Fields of the classes, then those that Transformers' shared code, its older versions or other
# readers of these files go by.
_FIXED = {
    "hidden_act": Fixed(("silu",)),
    "attention_dropout": Fixed((0, None), "set it to 0: nothing is dropped here"),
    "attention_bias": Fixed((False, None)),
    "is_encoder_decoder": Fixed((False, None)),
    "mlp_bias": Fixed((False, None)),
    "hidden_dropout": Fixed((0, None), "set it to 0: nothing is dropped here"),
    "partial_rotary_factor": Fixed((1, None)),
    "is_causal": Fixed((True, None), "use a model that reads from left to right"),
    "attention_chunk_size": Fixed((None,)),
    "per_layer_config": Fixed((None, {}), "use a model whose layers are alike"),
    "pruned_heads": Fixed((None, {})),
    "quantization_config": Fixed((None,), "use the model's weights before quantisation"),
    "compression_config": Fixed((None,), "use the model's weights before quantisation"),
    "transformers_weights": Fixed((None,), "name the weights model.safetensors"),
    "auto_map": Fixed((None,), "code of a folder is never run; use a model without its own"),
    "logit_scale": Fixed((1, None)),
    "final_logit_softcapping": Fixed((None,)),
    "num_nextn_predict_layers": Fixed((0, None)),
    "n_routed_experts": _DENSE,
    "n_shared_experts": _DENSE,
    "shared_expert_intermediate_size": _DENSE,
}
_NO_EXPERTS = {"num_experts": _DENSE, "num_local_experts": _DENSE}
_LLAMA = {
    "pretraining_tp": Fixed((1, None), "set it to 1: it changes rounding only"),
    "sliding_window": Fixed((None,)),
}
_EVERY_LAYER = {
    "decoder_sparse_step": Fixed((1,), "use a model with experts in every layer"),
    "mlp_only_layers": Fixed(([], None), "use a model with experts in every layer"),
}

FIELDS = {
    "llama": Fields(
        "LlamaForCausalLM",
        _READ | {"original_max_position_embeddings"},
        _FIXED | _NO_EXPERTS | _LLAMA,
        _INERT,
    ),
    "qwen2": Fields(
        "Qwen2ForCausalLM",
        _READ | _WINDOWS | {"max_window_layers"},
        _FIXED | _NO_EXPERTS,
        _INERT,
    ),
    "qwen3": Fields(
        "Qwen3ForCausalLM",
        _READ | _WINDOWS | {"max_window_layers"},
        _FIXED | _NO_EXPERTS,
        _INERT,
    ),
    "qwen3_moe": Fields(
        "Qwen3MoeForCausalLM",
        _READ | _WINDOWS | _EXPERTS,
        _FIXED | _EVERY_LAYER,
        _INERT | _ROUTER_LOSS,
    ),
}


def check_fields(config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for a family, class or value that is not computed, by its name."""
    family = config.get("model_type")
    if family not in list(FIELDS):
        raise CheckpointError(
            f"{where}: model_type={family!r} is not supported; supported are {', '.join(FIELDS)}."
        )
    fields = FIELDS[family]
    for name, fixed in fields.fixed.items():
        if name in config and config[name] not in fixed.values:
            allowed = " or ".join(map(repr, fixed.values))
            refuse(where, name, config[name], f"only {allowed} is; {fixed.remedy}")
    classes = config.get("architectures")
    if classes and classes != [fields.causal_lm]:
        refuse(where, "architectures", classes, f"only {[fields.causal_lm]} is: a language model")


def refuse(where: str, name: str, value: Any, instead: str) -> NoReturn:
    """Raise the CheckpointError for a field whose value would be ignored."""
    raise CheckpointError(f"{where}: {name}={value!r} is not supported, {instead}.")


def number(config: Mapping[str, Any], name: str, where: str) -> float:
    """A positive number; CheckpointError for anything else."""
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise CheckpointError(f"{where}: {name}={value!r} must be a positive number.")
    return float(value)


def count(config: Mapping[str, Any], name: str, where: str) -> int:
    """A positive whole number; CheckpointError for anything else."""
    value = number(config, name, where)
    if value != int(value):
        raise CheckpointError(f"{where}: {name}={value!r} must be a whole number.")
    return int(value)


def flag(config: Mapping[str, Any], name: str, where: str) -> bool:
    """True or false, false when it is not stated; CheckpointError for anything else."""
    value = config.get(name, False)
    if not isinstance(value, bool):
        raise CheckpointError(f"{where}: {name}={value!r} must be true or false.")
    return value
