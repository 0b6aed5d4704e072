"""Megatron's GPTModel for an `Architecture`: its configuration, its head, its stages."""

from __future__ import annotations

import importlib.util
from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import silu

from megatron_vr.models.architecture import Architecture
from megatron_vr.models.log_prob import Head, Targets, log_probs_at
from megatron_vr.models.plain_layers import SharedPromptPack
from megatron_vr.models.spec import SpecName, check_spec, expert_fields, layer_spec
from megatron_vr.parallel.layout import Layout

DTypeName = Literal["float32", "bfloat16"]
Recompute = Literal["none", "selective", "full"]
Chunk = int | Literal["auto"]
Fp8 = Literal["tensorwise", "blockwise"]

# Bytes of logits that the head holds at once where the chunk is "auto". A GPU wants chunks large
# enough that adding them to the weight's gradient is not what it waits for.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**27, 2**30

# The format that each recipe's scales are meant for. Blocks are fine enough for gradients in e4m3.
_FP8_FORMATS = {"tensorwise": "hybrid", "blockwise": "e4m3"}

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective"},
    "full": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
    },
}


class PlacedRotary(torch.nn.Module):
    """Megatron's `rotary` frequencies, or, where `positions` [places] says which position each
    place of a pack has, theirs."""

    def __init__(self, rotary: torch.nn.Module) -> None:
        super().__init__()
        self.rotary: Any = rotary
        self.positions: Tensor | None = None

    def get_rotary_seq_len(self, *args: Any) -> int:
        """What Megatron calls `forward` with."""
        length: int = self.rotary.get_rotary_seq_len(*args)
        return length

    def forward(self, length: int, **kwargs: Any) -> Tensor:
        """[length, 1, 1, head_dim] for positions from 0, or [places, 1, 1, head_dim]."""
        if self.positions is None:
            whole: Tensor = self.rotary(length, **kwargs)
            return whole
        frequencies: Tensor = self.rotary(int(self.positions.max()) + 1, packed_seq=True)
        return frequencies[self.positions]


class LogProbModel(GPTModel):
    """A GPTModel whose last stage returns log-probs of labels instead of losses of all positions.

    `model(input_ids, position_ids, None, labels=Targets(labels, mask), packed_seq_params=pack)`
    with [batch, sequence] ids returns what `log_probs_at` does: [number of True in the mask]
    float32, log p(label) at the masked positions, row by row. Without labels it returns logits
    [batch, sequence, vocabulary]. Earlier stages return hidden states, as Megatron's schedules
    expect.
    """

    def __init__(
        self, *args: Any, true_vocab_size: int, log_prob_chunk: Chunk, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.true_vocab_size = true_vocab_size
        self.log_prob_chunk = log_prob_chunk
        self.rotary_pos_emb: Any = PlacedRotary(self.rotary_pos_emb)

    def _preprocess(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        *args: Any,
        packed_seq_params: PackedSeqParams | None = None,
        **kwargs: Any,
    ) -> Any:
        placed = isinstance(packed_seq_params, SharedPromptPack)
        self.rotary_pos_emb.positions = position_ids[0] if placed else None
        kwargs["packed_seq_params"] = packed_seq_params
        return super()._preprocess(input_ids, position_ids, *args, **kwargs)

    def _postprocess(
        self,
        hidden_states: Tensor,
        *args: Any,
        labels: Targets | None = None,
        **kwargs: Any,
    ) -> Tensor:
        if not self.post_process:
            return hidden_states
        if labels is None:
            kwargs["runtime_gather_output"] = True
            logits: Tensor = super()._postprocess(hidden_states, *args, labels=None, **kwargs)
            return logits[..., : self.true_vocab_size]
        tied = self.share_embeddings_and_output_weights
        # DDP waits in them for weights that are still being gathered; the layer is never called.
        for hook in tuple(self.output_layer._forward_pre_hooks.values()):
            hook(self.output_layer, ())
        head = Head(
            weight=self.shared_embedding_or_output_weight() if tied else self.output_layer.weight,
            vocab_size=self.true_vocab_size,
            chunk=self._chunk(),
            sequence_parallel=self.config.sequence_parallel,
            group=self.pg_collection.tp,
        )
        return log_probs_at(head, hidden_states, labels)

    def _chunk(self) -> int:
        """Positions the head projects at once."""
        if self.log_prob_chunk != "auto":
            return self.log_prob_chunk
        memory = LOGITS_ON_CPU if self.config.use_cpu_initialization else LOGITS_ON_GPU
        rows = self.vocab_size // self.config.tensor_model_parallel_size
        return max(1, memory // (rows * torch.float32.itemsize))


def build_model(
    architecture: Architecture,
    layout: Layout,
    *,
    spec: SpecName,
    dtype: DTypeName,
    recompute: Recompute,
    log_prob_chunk: Chunk,
    fp8: Fp8 | None = None,
) -> list[MegatronModule]:
    """This rank's stages of the model: one, or one for each virtual pipeline chunk.

    Needs Megatron's process groups for `layout` (see `parallel.layout.initialise`). All weight
    matrices are zero until `convert.load.load_hf` or a checkpoint fills them. `log_prob_chunk` is
    the number of positions the head projects at once; "auto" bounds the memory of their logits.
    Raises SettingsError for a spec that is not available here.
    """
    check_spec(spec)
    config = transformer_config(
        architecture, layout, spec=spec, dtype=dtype, recompute=recompute, fp8=fp8
    )
    chunks = range(layout.virtual_pipeline) if layout.virtual_pipeline else (None,)
    return [
        _build_stage(architecture, layout, config, spec, log_prob_chunk, chunk) for chunk in chunks
    ]


def _build_stage(
    architecture: Architecture,
    layout: Layout,
    config: TransformerConfig,
    spec: SpecName,
    log_prob_chunk: Chunk,
    vp_stage: int | None,
) -> MegatronModule:
    placed = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = LogProbModel(
        config=config,
        transformer_layer_spec=layer_spec(spec, config, vp_stage),
        vocab_size=layout.padded_vocabulary(architecture.vocab_size),
        max_sequence_length=architecture.max_positions,
        pre_process=parallel_state.is_pipeline_first_stage(**placed),
        post_process=parallel_state.is_pipeline_last_stage(**placed),
        share_embeddings_and_output_weights=architecture.tied,
        position_embedding_type="rope",
        rotary_base=architecture.rope_theta,
        rope_scaling=architecture.rope_factor is not None,
        rope_scaling_factor=architecture.rope_factor or 1.0,
        vp_stage=vp_stage,
        true_vocab_size=architecture.vocab_size,
        log_prob_chunk=log_prob_chunk,
    )
    return model if config.use_cpu_initialization else model.cuda()


def transformer_config(
    architecture: Architecture,
    layout: Layout,
    *,
    spec: SpecName,
    dtype: DTypeName,
    recompute: Recompute,
    fp8: Fp8 | None = None,
) -> TransformerConfig:
    """Megatron's configuration, all of it: nothing else may set a field except the hooks
    (`grad_scale_func`, `finalize_model_grads_func`, ...) that a training loop must add."""
    params_dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return TransformerConfig(
        num_layers=architecture.layers,
        hidden_size=architecture.hidden_size,
        ffn_hidden_size=architecture.ffn_hidden_size,
        num_attention_heads=architecture.heads,
        num_query_groups=architecture.kv_heads,
        kv_channels=architecture.head_dim,
        normalization="RMSNorm",
        layernorm_epsilon=architecture.norm_eps,
        qk_layernorm=architecture.qk_norm,
        add_bias_linear=False,
        add_qkv_bias=architecture.qkv_bias,
        gated_linear_unit=True,
        activation_func=silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method=torch.nn.init.zeros_,
        output_layer_init_method=torch.nn.init.zeros_,
        # Losses are sums: gradients must not be divided by the data-parallel size. Megatron's DDP
        # reads this when it is built; set later it is ignored.
        calculate_per_token_loss=True,
        params_dtype=params_dtype,
        bf16=dtype == "bfloat16",
        **({"fp8": _FP8_FORMATS[fp8], "fp8_recipe": fp8} if fp8 is not None else {}),
        **expert_fields(architecture.experts, spec),
        **_parallel_fields(layout, params_dtype),
        **_device_fields(spec),
        **_RECOMPUTE[recompute],
    )


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


def _device_fields(spec: SpecName) -> dict[str, Any]:
    on_gpu, te = torch.cuda.is_available(), spec == "te"
    apex_kernel = importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None
    return {
        "use_cpu_initialization": not on_gpu,
        "batch_p2p_sync": on_gpu,
        "bias_activation_fusion": on_gpu,
        "bias_dropout_fusion": on_gpu,
        "apply_rope_fusion": te,
        "masked_softmax_fusion": False,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": on_gpu and te and apex_kernel,
    }
