"""Layers in plain torch that do what Transformer Engine's do, on any device.

Megatron's own local layers refuse sequence parallelism (norms) and packed sequences (attention).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from megatron_vr.models.packing import (
    PackPlan,
    Segment,
    context_share,
    gathered_order,
    plan_pack,
    whole_sequences,
)


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm over the last dimension whose gradient Megatron sums over sequence-parallel ranks."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused: Any
    ) -> None:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype, device=device)
        # finalize_model_grads looks for this mark: each rank saw its share of the tokens only.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


@dataclass
class SharedPromptPack(PackedSeqParams):  # type: ignore[misc]
    """A pack in which traces share the keys of their prompt; `segments` hold every place once.

    To Megatron it is one sequence, whose rotary positions the model gives place by place.
    """

    segments: tuple[Segment, ...] = ()


class PlainAttention(MegatronModule):
    """Causal self-attention over torch's scaled_dot_product_attention.

    Takes Megatron's [sequence, batch, heads, head_dim], or packs [tokens, heads, head_dim] with
    `PackedSeqParams(qkv_format="thd")`; fewer key/value heads than query heads are shared. With
    context parallelism a rank has its zigzag share of every sequence of a pack (see
    `context_share`), and the keys and values of all ranks are gathered.
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
        self.ranks = config.context_parallel_size
        self.context = parallel_state.get_context_parallel_group() if self.ranks > 1 else None

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

        Raises ValueError for masks and biases, for a pack whose boundaries do not end at its last
        token, and with context parallelism for anything but a pack of whole sequences.
        """
        if attention_mask is not None or attention_bias is not None:
            raise ValueError("plain attention is causal and takes no mask and no bias")
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        if self.context is not None:
            raise ValueError("context parallelism splits packs; pass packed_seq_params")
        batched = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        out = self._attend(*batched)
        return out.permute(2, 0, 1, 3).flatten(2)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, pack: PackedSeqParams) -> Tensor:
        boundaries = tuple(pack.cu_seqlens_q.tolist())
        if boundaries[-1] != query.shape[0] * self.ranks:
            raise ValueError(
                f"the pack's sequences end at token {boundaries[-1]}, but it has "
                f"{query.shape[0] * self.ranks} tokens; padding must be a sequence of its own"
            )
        if isinstance(pack, SharedPromptPack):
            if self.context is not None:
                raise ValueError("prompts cannot be shared with context parallelism")
            return self._planned(query, key, value, plan_pack(pack.segments, query.device))
        if self.context is None:
            plan = plan_pack(whole_sequences(boundaries), query.device)
            return self._planned(query, key, value, plan)
        key, value = self._of_all_ranks(key, value, boundaries)
        share = context_share(boundaries, self.ranks, self.context.rank())
        return self._planned(query, key, value, plan_pack(share, query.device))

    def _of_all_ranks(
        self, key: Tensor, value: Tensor, boundaries: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the whole pack; each rank's gradients for them are summed."""
        both = torch.stack((key, value), dim=1)
        gathered = gather_from_sequence_parallel_region(
            both, tensor_parallel_output_grad=True, group=self.context
        )
        order = torch.from_numpy(gathered_order(boundaries, self.ranks)).to(key.device)
        whole = gathered[order]
        return whole[:, 0], whole[:, 1]

    def _planned(self, query: Tensor, key: Tensor, value: Tensor, plan: PackPlan) -> Tensor:
        if plan.order is None:
            (only,) = plan.batches
            rows = (tensor.unflatten(0, only.queries.shape) for tensor in (query, key, value))
            attended = self._attend(*(tensor.transpose(1, 2) for tensor in rows))
            return attended.transpose(1, 2).flatten(0, 1).flatten(1)
        real = []
        for batch in plan.batches:
            attended = self._attend(
                _taken(query, batch.queries).transpose(1, 2),
                _taken(key, batch.keys).transpose(1, 2),
                _taken(value, batch.keys).transpose(1, 2),
                batch.seen,
            )
            real.append(attended.transpose(1, 2).flatten(0, 1).index_select(0, batch.real))
        return torch.cat(real).index_select(0, plan.order).flatten(1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None
    ) -> Tensor:
        """[batch, heads, sequence, head_dim] each; keys and values may have fewer heads."""
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=seen,
            is_causal=seen is None,
            scale=self.softmax_scale,
            enable_gqa=True,
        )


def _taken(tensor: Tensor, places: Tensor) -> Tensor:
    """`tensor[places]` with a faster gradient: [tokens, ...] at [n, m] places gives [n, m, ...]."""
    return tensor.index_select(0, places.flatten()).unflatten(0, places.shape)
