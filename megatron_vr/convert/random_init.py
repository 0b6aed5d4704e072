"""A Hugging Face folder of random weights, for runs that start from scratch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from megatron_vr.convert.hf_writer import copy_companions, new_folder
from megatron_vr.errors import SettingsError
from megatron_vr.problems.tokenizer import save_tokenizer

# Our names for a model's shape, and Transformers'.
_FIELDS = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
_REQUIRED = (
    "hidden_size",
    "ffn_hidden_size",
    "layers",
    "heads",
    "kv_heads",
    "head_dim",
    "max_positions",
)
_DEFAULTS: dict[str, Any] = {"rope_theta": 10_000.0, "norm_eps": 1e-6, "tied": False}


def write_random_model(
    architecture_fields: Mapping[str, Any] | Iterable[tuple[str, Any]],
    tokenizer: str | Path | Any,
    folder: str | Path,
    seed: int,
) -> None:
    """Write a Qwen3 model with random float32 weights and its tokenizer as `folder`.

    `architecture_fields` are named as in `Architecture`; `vocab_size` defaults to the tokenizer's,
    rope base 10000, norm epsilon 1e-6, untied. `tokenizer` is a folder, or a Transformers
    tokenizer. Weights are drawn as Transformers draws them (normal, deviation 0.02), and those
    that write into the residual stream are scaled by 1 / sqrt(2 layers), so that its variance does
    not grow with depth. The same seed gives the same bytes. Raises SettingsError for unknown or
    missing fields, CheckpointError when `folder` exists and is not empty.
    """
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    given = dict(architecture_fields)
    _check_fields(given)
    fields = _DEFAULTS | given
    from_folder = isinstance(tokenizer, (str, Path))
    loaded: Any = AutoTokenizer.from_pretrained(str(tokenizer)) if from_folder else tokenizer
    fields.setdefault("vocab_size", len(loaded))
    if fields["vocab_size"] < len(loaded):
        raise SettingsError(
            f"vocab_size={fields['vocab_size']} is less than the tokenizer's {len(loaded)} tokens."
        )
    config = Qwen3Config(
        **{_FIELDS[name]: value for name, value in fields.items()},
        bos_token_id=loaded.bos_token_id,
        eos_token_id=loaded.eos_token_id,
        pad_token_id=loaded.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).float()
    _scale_residual_outputs(model, fields["layers"])
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if from_folder:
            # As they are: a tokenizer is not rewritten by the version that happens to run.
            copy_companions(Path(tokenizer), temporary)
        else:
            save_tokenizer(loaded, temporary)


def _check_fields(fields: Mapping[str, Any]) -> None:
    unknown = sorted(set(fields) - set(_FIELDS))
    missing = [name for name in _REQUIRED if name not in fields]
    if unknown:
        raise SettingsError(
            f"model.random.{unknown[0]} is unknown; known are {', '.join(_FIELDS)}."
        )
    if missing:
        raise SettingsError(f"model.random.{missing[0]} is missing.")


def _scale_residual_outputs(model: Any, layers: int) -> None:
    import torch

    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.mul_(1 / math.sqrt(2 * layers))
            layer.mlp.down_proj.weight.mul_(1 / math.sqrt(2 * layers))
