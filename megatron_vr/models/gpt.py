"""Megatron's GPTModel for an `Architecture`: its configuration, its head, its stages."""

from __future__ import annotations

from typing import Any, Literal

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.spec_choice import Spec, SpecName
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.configuration import Attention, DTypeName, Recompute, config_fields
from megatron_vr.models.gpt_fields import gpt_fields
from megatron_vr.models.log_prob import Head, Targets, log_probs_at
from megatron_vr.models.plain_layers import SharedPromptPack
from megatron_vr.models.spec import layer_spec, spec_here
from megatron_vr.parallel.layout import Layout

Chunk = int | Literal["auto"]

# Bytes of logits that the head holds at once where the chunk is "auto". A GPU wants chunks large
# enough that adding them to the weight's gradient is not what it waits for.
LOGITS_ON_CPU, LOGITS_ON_GPU = 2**27, 2**30


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
        rows = self.vocab_size // self.config.tensor_model_parallel_size
        if self.config.use_cpu_initialization:
            return max(1, LOGITS_ON_CPU // (rows * torch.float32.itemsize))
        return max(1, LOGITS_ON_GPU // (rows * self.config.params_dtype.itemsize))


def build_model(
    architecture: Architecture,
    layout: Layout,
    *,
    spec: SpecName,
    dtype: DTypeName,
    recompute: Recompute,
    log_prob_chunk: Chunk,
    attention: Attention = "fused",
    fp8: Fp8Settings | None = None,
) -> list[MegatronModule]:
    """This rank's stages of the model: one, or one for each virtual pipeline chunk.

    Needs Megatron's process groups for `layout` (see `parallel.layout.initialise`). All weight
    matrices are zero until `convert.load.load_hf` or a checkpoint fills them. `log_prob_chunk` is
    the number of positions the head projects at once; "auto" bounds the memory of their logits.
    Raises SettingsError for a spec that is not available here.
    """
    layers = spec_here(spec)
    config = transformer_config(
        architecture,
        layout,
        spec=layers,
        dtype=dtype,
        recompute=recompute,
        attention=attention,
        fp8=fp8,
    )
    chunks = range(layout.virtual_pipeline) if layout.virtual_pipeline else (None,)
    return [
        _build_stage(architecture, layout, config, layers, log_prob_chunk, chunk)
        for chunk in chunks
    ]


def _build_stage(
    architecture: Architecture,
    layout: Layout,
    config: TransformerConfig,
    spec: Spec,
    log_prob_chunk: Chunk,
    vp_stage: int | None,
) -> MegatronModule:
    placed = {"ignore_virtual": False, "vp_stage": vp_stage}
    model = LogProbModel(
        config=config,
        transformer_layer_spec=layer_spec(spec, config, vp_stage),
        **gpt_fields(architecture, layout),
        pre_process=parallel_state.is_pipeline_first_stage(**placed),
        post_process=parallel_state.is_pipeline_last_stage(**placed),
        vp_stage=vp_stage,
        log_prob_chunk=log_prob_chunk,
    )
    return model if config.use_cpu_initialization else model.cuda()


def transformer_config(
    architecture: Architecture,
    layout: Layout,
    *,
    spec: Spec,
    dtype: DTypeName,
    recompute: Recompute,
    attention: Attention = "fused",
    fp8: Fp8Settings | None = None,
) -> TransformerConfig:
    """Megatron's configuration on this process's device."""
    return TransformerConfig(
        **config_fields(
            architecture,
            layout,
            spec=spec,
            dtype=dtype,
            recompute=recompute,
            attention=attention,
            fp8=fp8,
            on_gpu=torch.cuda.is_available(),
        )
    )
