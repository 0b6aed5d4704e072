"""The softmax of one chunk of logits: log Σ exp, the labels' logits, and the gradient in place.

On a GPU by the kernels of `softmax_kernels`, elsewhere by torch's own operations; the vocabulary
may be spread over tensor-parallel ranks (`VocabularyShard`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_vr.models.vocabulary import VocabularyShard


@dataclass(frozen=True)
class TorchChunk:
    """Logits of n positions in torch's operations: `powers` [n, rows] float32 are exp(l − c) and
    `total` [n] their sum over all ranks; `target` and `normaliser` [n] as `Chunk` says."""

    shard: VocabularyShard
    powers: Tensor
    total: Tensor
    labels: Tensor
    target: Tensor
    normaliser: Tensor

    @staticmethod
    def of(shard: VocabularyShard, logits: Tensor, labels: Tensor) -> TorchChunk:
        """Of `logits` [n, rows] float32, which are overwritten."""
        target = shard.at(logits, labels)
        powers, total, largest = shard.exponentials(logits)
        return TorchChunk(shard, powers, total, labels, target, largest + total.log())

    def gradient(self, derivative: Tensor) -> Tensor:
        """derivative · ([v = y] − p(v)) [n, rows] float32, in the memory of the logits: to be
        called once. `derivative` [n] float32 is the loss's by each log-prob."""
        return self.shard.gradient(self.powers, self.total, self.labels, derivative)


@dataclass(frozen=True)
class FusedChunk:
    """The same by our kernels: `logits` [n, rows] as the product left them, `columns` [n] the
    labels' own, −1 where they are another rank's."""

    shard: VocabularyShard
    logits: Tensor
    columns: Tensor
    target: Tensor
    normaliser: Tensor

    @staticmethod
    def of(shard: VocabularyShard, logits: Tensor, labels: Tensor) -> FusedChunk:
        """Of `logits`, which stay as they are until the gradient."""
        # Triton comes with torch where there is a GPU, and is not needed elsewhere.
        from megatron_vr.models.softmax_kernels import row_sums

        columns = shard.columns(labels)
        largest, total, target = row_sums(logits, shard.real, columns)
        normaliser = shard.log_sum(largest, total)
        return FusedChunk(shard, logits, columns, shard.summed(target), normaliser)

    def gradient(self, derivative: Tensor) -> Tensor:
        """The same, in the logits' precision."""
        from megatron_vr.models.softmax_kernels import overwrite_with_gradient

        overwrite_with_gradient(
            self.logits, self.shard.real, self.columns, self.normaliser, derivative
        )
        return self.logits


# Of n positions, `target` [n] are the labels' logits and `normaliser` [n] log Σ exp, both float32
# and over all ranks.
Chunk = TorchChunk | FusedChunk


def by_kernels(hidden: Tensor) -> bool:
    """Whether the chunks of `hidden` are the kernels'."""
    return hidden.is_cuda


def first_look(shard: VocabularyShard, hidden: Tensor, weight: Tensor, labels: Tensor) -> Chunk:
    """The chunk of `hidden` [n, hidden], projected with `weight` [rows, hidden]."""
    if by_kernels(hidden):
        return FusedChunk.of(shard, torch.mm(hidden, weight.t()), labels)
    return TorchChunk.of(shard, shard.logits(hidden, weight), labels)


def second_look(
    shard: VocabularyShard, hidden: Tensor, weight: Tensor, labels: Tensor, normaliser: Tensor
) -> Chunk:
    """The same once its `normaliser` is known; `target` is not found again, and zero."""
    nothing = torch.zeros_like(normaliser)
    if by_kernels(hidden):
        logits = torch.mm(hidden, weight.t())
        return FusedChunk(shard, logits, shard.columns(labels), nothing, normaliser)
    powers = shard.logits(hidden, weight).sub_(normaliser[:, None]).exp_()
    return TorchChunk(shard, powers, torch.ones_like(normaliser), labels, nothing, normaliser)
