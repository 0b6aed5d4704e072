"""Which modules a transformer layer is made of: plain torch, or Transformer Engine."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.config.spec_choice import (
    Spec,
    SpecName,
    resolve_spec,
    without_transformer_engine,
)
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Experts
from megatron_vr.models.parts import transformer_engine_version
from megatron_vr.models.plain_layers import PlainAttention, RMSNorm
from megatron_vr.parallel.layout import Layout


def spec_here(name: SpecName) -> Spec:
    """The same for this process's device.

    Raises SettingsError where they cannot be built here. Needs no process group.
    """
    if name not in ("auto", "plain", "te"):
        raise SettingsError(f"model.spec={name!r} is unknown; use 'auto', 'plain' or 'te'.")
    spec = resolve_spec(name, torch.cuda.is_available())
    if spec == "te" and transformer_engine_version() is None:
        raise SettingsError(without_transformer_engine(name))
    return spec


def shares_prompts(name: SpecName, layout: Layout) -> bool:
    """Whether sequences of a pack can share the keys of their prompt: the attention must take
    arbitrary segments, and every rank must have whole sequences."""
    return spec_here(name) == "plain" and layout.context == 1


def expert_fields(experts: Experts | None, name: Spec) -> dict[str, Any]:
    """Megatron's settings for `experts`: every token reaches all experts that it chose, and their
    probabilities are computed in float32. The loss is ours alone: nothing is added to it that
    balances the experts."""
    # Pipeline stages that tell each other shapes want this dispatcher, experts or not.
    fields: dict[str, Any] = {"moe_token_dispatcher_type": "alltoall"}
    if experts is None:
        return fields
    return fields | {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.ffn_hidden_size,
        "moe_router_topk": experts.per_token,
        # The softmax over the chosen experts alone is that over all of them, normalised.
        "moe_router_pre_softmax": not experts.normalised,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "none",
        "moe_aux_loss_coeff": 0.0,
        "moe_grouped_gemm": name == "te",
    }


def layer_spec(
    name: Spec, config: TransformerConfig, vp_stage: int | None = None
) -> ModuleSpec | TransformerBlockSubmodules:
    """The layers of this rank's stage, for GPTModel's `transformer_layer_spec`.

    Both specs store their parameters under the same checkpoint keys. Needs Megatron's process
    groups.
    """
    if name == "te":
        return get_gpt_layer_with_transformer_engine_spec(
            num_experts=config.num_moe_experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            qk_layernorm=config.qk_layernorm,
        )
    layer = get_gpt_layer_local_spec(
        num_experts=config.num_moe_experts,
        qk_layernorm=config.qk_layernorm,
        normalization=config.normalization,
    )
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
    if config.num_moe_experts:
        # Without Transformer Engine 0.16 leaves this name undefined that its router looks at.
        vars(moe_utils).setdefault("te_general_gemm", None)
        # Megatron renames this norm as if the MLP's first projection held it; experts' does not.
        keys = parts.sharded_state_dict_keys_map
        parts.sharded_state_dict_keys_map = {
            key: name for key, name in keys.items() if not key.startswith("pre_mlp_layernorm")
        }
    attention = parts.self_attention.submodules
    attention.core_attention = PlainAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RMSNorm
    # Handed over as a block, so that the norm after the last layer is ours too.
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)
