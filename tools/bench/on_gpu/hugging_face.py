"""What one would otherwise run: Transformers' Qwen3 with Liger's kernels, flash attention, AdamW.

Its best set-up that needs nothing else installed: norms, SwiGLU, rotary positions and the fused
linear cross-entropy are Liger's; attention is torch's, flash or cuDNN's, over batches without
padding, or torch's flash attention of variable length over packs, as Transformers does with
flash-attn (no mask, positions that begin again with each sequence).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy
from transformers import AttentionInterface, AutoModelForCausalLM, Qwen3Config

from megatron_vr.models.architecture import Architecture
from megatron_vr.training.micro_batch import TokenTable
from tools.bench.on_gpu.place import Place
from tools.bench.on_gpu.shapes import hf_fields

Attention = Literal["flash", "cuDNN", "packed"]

PACKED: Final = "bench_varlen"
IGNORED = -100

# No other beside it: a row has the kernel that it is named after, or fails.
_BACKEND: Final = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


@dataclass(frozen=True)
class Batch:
    """`tokens` and `labels` [rows, length], the label of a place being the next token, or IGNORED;
    of a pack `positions` [1, length], the `ends` of its sequences int32 and the `longest`."""

    tokens: Tensor
    labels: Tensor
    positions: Tensor | None = None
    ends: Tensor | None = None
    longest: int = 0


def padded(table: TokenTable, rows: Sequence[int], device: str) -> Batch:
    """These sequences side by side, padded behind; a causal mask needs to know nothing of it."""
    places = [int(table.places[row]) for row in rows]
    tokens = torch.zeros(len(rows), max(places), dtype=torch.long)
    labels = torch.full_like(tokens, IGNORED)
    for index, (row, count) in enumerate(zip(rows, places, strict=True)):
        tokens[index, :count], labels[index, :count] = _sequence(table, row)
    return Batch(tokens.to(device), labels.to(device))


def packed(table: TokenTable, rows: Sequence[int], device: str) -> Batch:
    """These sequences one after the other in one row."""
    pairs = [_sequence(table, row) for row in rows]
    counts = [len(tokens) for tokens, _ in pairs]
    positions = torch.cat([torch.arange(count) for count in counts])
    return Batch(
        tokens=torch.cat([tokens for tokens, _ in pairs])[None].to(device),
        labels=torch.cat([labels for _, labels in pairs])[None].to(device),
        positions=positions[None].to(device),
        ends=torch.tensor([0, *np.cumsum(counts)], dtype=torch.int32, device=device),
        longest=max(counts),
    )


def _sequence(table: TokenTable, row: int) -> tuple[Tensor, Tensor]:
    first, last = int(table.offsets[row]), int(table.offsets[row + 1])
    ids = torch.from_numpy(table.tokens[first:last].astype(np.int64))
    wanted = torch.from_numpy(table.is_target[first + 1 : last])
    return ids[:-1], ids[1:].masked_fill(~wanted, IGNORED)


class Rival:
    """One update of all batches: a plain loop, gradients summed in the weights' bfloat16."""

    def __init__(self, architecture: Architecture, place: Place) -> None:
        self._place = place
        self._loss = dense_loss if place.rehearse else liger_loss
        if not place.rehearse:
            _use_liger()
        AttentionInterface.register(PACKED, varlen_attention)
        config = Qwen3Config(**hf_fields(architecture))
        with torch.device(place.device):
            self.model = AutoModelForCausalLM.from_config(
                config, dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        self.model.train()
        self.optimizer: Any = None

    def use(self, masters: bool) -> None:
        """Begin with AdamW on the bfloat16 weights, or on float32 copies of them."""
        self.optimizer = None
        parameters = list(self.model.parameters())
        self.optimizer = Float32Masters(parameters) if masters else _adam(parameters)

    def step(self, batches: Sequence[Batch], attention: Attention) -> float:
        """One update; the mean loss of the targets."""
        total = sum(int((batch.labels != IGNORED).sum()) for batch in batches)
        found = torch.zeros((), device=self._place.device)
        with _kernel(attention, self._place):
            for batch in batches:
                loss = self._loss(self._hidden(batch, attention), self._head(), batch) / total
                loss.backward()
                found += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(found)

    def _hidden(self, batch: Batch, attention: Attention) -> Tensor:
        inner = self.model.model
        more: dict[str, Any] = {"use_cache": False}
        # Read at every call.
        self.model.config._attn_implementation = PACKED if attention == "packed" else "sdpa"
        if attention == "packed":
            more |= {"position_ids": batch.positions, "cu_seq_lens_q": batch.ends}
            more |= {"max_length_q": batch.longest}
        hidden: Tensor = inner(input_ids=batch.tokens, **more).last_hidden_state
        return hidden

    def _head(self) -> Tensor:
        weight: Tensor = self.model.lm_head.weight
        return weight


def liger_loss(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """Liger's sum over the targets."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss: Tensor = LigerFusedLinearCrossEntropyLoss(ignore_index=IGNORED, reduction="sum")(
        weight, hidden.flatten(0, 1), batch.labels.flatten()
    )
    return loss


def dense_loss(hidden: Tensor, weight: Tensor, batch: Batch) -> Tensor:
    """The same from all logits."""
    logits = (hidden.flatten(0, 1) @ weight.t()).float()
    return cross_entropy(logits, batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")


def _use_liger() -> None:
    """Give the models that are built from now on Liger's modules and rotary positions."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3

    apply_liger_kernel_to_qwen3(
        rope=True, rms_norm=True, swiglu=True, fused_linear_cross_entropy=False
    )


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Torch's flash attention over the sequences of a pack, as an attention of Transformers.

    [1, heads, length, head_dim] in, [1, length, heads, head_dim] out.
    """
    found = _varlen()(
        *(each[0].transpose(0, 1) for each in (query, key, value)),
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(-1, 0),
    )
    return found[None], None


def _varlen() -> Callable[..., Any]:
    """Torch's; on a CPU, which has none, the same by one sequence after the other."""
    if not torch.cuda.is_available():
        return _one_by_one
    from torch.nn.attention.varlen import varlen_attn

    # Newer versions want to be told of fewer keys than queries.
    told = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, enable_gqa=True) if told else varlen_attn


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, ends: Tensor, *rest: Any, scale: float, **more: Any
) -> Tensor:
    parts = []
    for first, last in zip(ends.tolist(), ends.tolist()[1:], strict=False):
        q, k, v = (each[first:last].transpose(0, 1)[None] for each in (query, key, value))
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=scale, enable_gqa=True
            )[0].transpose(0, 1)
        )
    return torch.cat(parts)


@contextmanager
def _kernel(attention: Attention, place: Place) -> Iterator[None]:
    chosen = attention in _BACKEND and not place.rehearse
    with sdpa_kernel(_BACKEND[attention]) if chosen else nullcontext():
        yield


def _adam(parameters: Sequence[Tensor]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


class Float32Masters:
    """Fused AdamW on float32 copies of bfloat16 weights, which follow them."""

    def __init__(self, parameters: Sequence[Any]) -> None:
        self._parameters = list(parameters)
        self._masters = [parameter.detach().float() for parameter in parameters]
        self._inner = _adam(self._masters)

    @torch.no_grad()
    def step(self) -> None:
        """One update; the bfloat16 gradients are gone afterwards."""
        for master, parameter in zip(self._masters, self._parameters, strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        self._inner.step()
        torch._foreach_copy_(self._parameters, self._masters)
        self.zero_grad(set_to_none=True)

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop all gradients."""
        for tensor in (*self._masters, *self._parameters):
            tensor.grad = None
