"""Which modules a transformer layer is made of: plain torch, or Transformer Engine."""

from __future__ import annotations

import importlib.util
from typing import Literal

from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.errors import SettingsError
from megatron_vr.models.plain_layers import PlainAttention, RMSNorm
from megatron_vr.parallel.layout import Layout

SpecName = Literal["plain", "te"]


def check_spec(name: str) -> None:
    """Raise SettingsError unless spec `name` can be built here. Needs no process group."""
    if name not in ("plain", "te"):
        raise SettingsError(f"model.spec={name!r} is unknown; use 'plain' or 'te'.")
    if name == "te" and importlib.util.find_spec("transformer_engine") is None:
        raise SettingsError(
            "model.spec=te needs Transformer Engine, which is not installed; "
            "install the extra megatron-vr[gpu] or set model.spec=plain."
        )


def shares_prompts(name: str, layout: Layout) -> bool:
    """Whether sequences of a pack can share the keys of their prompt: the attention must take
    arbitrary segments, and every rank must have whole sequences."""
    return name == "plain" and layout.context == 1


def layer_spec(
    name: SpecName, config: TransformerConfig, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of this rank's stage, for GPTModel's `transformer_layer_spec`.

    Both specs store their parameters under the same checkpoint keys. Needs Megatron's process
    groups; raises SettingsError as `check_spec` does.
    """
    check_spec(name)
    if name == "te":
        return get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer = get_gpt_layer_local_spec(
        qk_layernorm=config.qk_layernorm, normalization=config.normalization
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    attention = parts.self_attention.submodules
    attention.core_attention = PlainAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    # Handed over as a block, so that the norm after the last layer is ours too.
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
