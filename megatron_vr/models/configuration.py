"""Megatron's configuration of a model, all of it. Pure: the device is told, not looked for."""

from __future__ import annotations

from typing import Any, Literal

import torch
from megatron.core.transformer.enums import AttnBackend
from torch.nn.functional import silu

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.spec_choice import Spec
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.precision import fp8_fields
from megatron_vr.models.spec import expert_fields
from megatron_vr.parallel.layout import Layout

DTypeName = Literal["float32", "bfloat16"]
Recompute = Literal["none", "selective", "full"]
Attention = Literal["fused", "flash"]

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


def config_fields(
    architecture: Architecture,
    layout: Layout,
    *,
    spec: Spec,
    dtype: DTypeName,
    recompute: Recompute,
    attention: Attention,
    fp8: Fp8Settings | None,
    on_gpu: bool,
) -> dict[str, Any]:
    """Every field of Megatron's TransformerConfig that is not its default, for a model on a GPU or
    on a CPU: nothing else may set one, but for the hooks (`grad_scale_func`,
    `finalize_model_grads_func`, ...) that a training loop must add."""
    params_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return {
        "num_layers": architecture.layers,
        "hidden_size": architecture.hidden_size,
        "ffn_hidden_size": architecture.ffn_hidden_size,
        "num_attention_heads": architecture.heads,
        "num_query_groups": architecture.kv_heads,
        "kv_channels": architecture.head_dim,
        "normalization": "RMSNorm",
        "layernorm_epsilon": architecture.norm_eps,
        "qk_layernorm": architecture.qk_norm,
        "add_bias_linear": False,
        "add_qkv_bias": architecture.qkv_bias,
        "gated_linear_unit": True,
        "activation_func": silu,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "init_method": torch.nn.init.zeros_,
        "output_layer_init_method": torch.nn.init.zeros_,
        # Losses are sums: gradients must not be divided by the data-parallel size. Megatron's DDP
        # reads this when it is built; set later it is ignored.
        "calculate_per_token_loss": True,
        "params_dtype": params_dtype,
        "bf16": dtype == "bfloat16",
        # Never one that Transformer Engine would choose by itself.
        "attention_backend": AttnBackend[attention],
        **fp8_fields(fp8),
        **expert_fields(architecture.experts, spec),
        **_parallel_fields(layout, params_dtype),
        **_device_fields(spec, on_gpu),
        **_RECOMPUTE[recompute],
    }


def _parallel_fields(layout: Layout, params_dtype: torch.dtype) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tensor_model_parallel_size": layout.tensor,
        "pipeline_model_parallel_size": layout.pipeline,
        "virtual_pipeline_model_parallel_size": layout.virtual_pipeline,
        "context_parallel_size": layout.context,
        "sequence_parallel": layout.sequence_parallel,
    }
    if layout.pipeline > 1:
        fields["pipeline_dtype"] = params_dtype
        # Packs differ in length, so stages tell each other shapes.
        fields["variable_seq_lengths"] = True
    if layout.virtual_pipeline:
        # Interleaved stages otherwise exchange activations and gradients in one batch, and with
        # two pipeline ranks, each other's only neighbour, one is taken for the other.
        fields["overlap_p2p_comm"] = True
        fields["batch_p2p_comm"] = False
    return fields


def _device_fields(spec: Spec, on_gpu: bool) -> dict[str, Any]:
    return {
        "use_cpu_initialization": not on_gpu,
        "batch_p2p_sync": on_gpu,
        "bias_activation_fusion": on_gpu,
        "bias_dropout_fusion": on_gpu,
        "apply_rope_fusion": spec == "te",
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        # Megatron's own layers would want apex for it. Transformer Engine's do it by themselves:
        # see `te_modules.fuse_weight_gradients`.
        "gradient_accumulation_fusion": False,
    }
