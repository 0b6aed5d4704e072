"""Layers in plain torch that do what Transformer Engine's do, on any device.

Megatron's own local layers refuse sequence parallelism (norms) and packed sequences (attention).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_vr.models.packing import plan_pack


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension whose gradient Megatron sums over sequence-parallel ranks."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
    ) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        # finalize_model_grads looks for this mark: each rank saw its share of the tokens only.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


class PlainAttention(MegatronModule):
    """Causal self-attention over torch's scaled_dot_product_attention.

    Takes Megatron's [sequence, batch, heads, head_dim], or packs [tokens, heads, head_dim] with
    `PackedSeqParams(qkv_format="thd")`; fewer key/value heads than query heads are shared.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        **unused: Any,
    ) -> None:
        super().__init__(config=config)
        if attention_type != "self" or attn_mask_type != AttnMaskType.causal:
            raise ValueError(
                f"plain attention is causal self-attention, not {attention_type} attention with "
                f"a {attn_mask_type.name} mask"
            )
        self.softmax_scale = softmax_scale

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attention output: [sequence, batch, heads * head_dim], or [tokens, ...] for a pack.

        Raises ValueError for masks and biases, and for a pack whose boundaries do not end at its
        last token.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("plain attention is causal and takes no mask and no bias")
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        batched = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = self._attend(*batched)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, pack: PackedSeqParams) -> Tensor:
        boundaries = tuple(pack.cu_seqlens_q.tolist())
        if boundaries[-1] != query.shape[0]:
            raise ValueError(
                f"the pack's sequences end at token {boundaries[-1]}, but it has "
                f"{query.shape[0]} tokens; padding must be a sequence of its own"
            )
        plan = plan_pack(boundaries, query.device)
        real = []
        for batch in plan.batches:
            padded = (tensor[batch.source].transpose(1, 2) for tensor in (query, key, value))
            real.append(self._attend(*padded).transpose(1, 2)[batch.real])
        return torch.cat(real)[plan.order].flatten(1)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[batch, heads, sequence, head_dim] each; keys and values may have fewer heads."""
        return scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=True
        )
