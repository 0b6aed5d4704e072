"""Log-probs of chosen tokens from hidden states, without the logits of a whole sequence.

For a hidden state `h`, output weight `W` [vocabulary, hidden] and token `y`:

    log p(y) = (W h)_y - log sum_v exp (W h)_v

Only positions that are asked for are projected, `chunk` of them at a time, and projected again in
the backward pass: logits of one chunk at most are alive. The rows of `W` may be spread over
tensor-parallel ranks; maximum, sum and target logit are then reduced over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class VocabularyShard:
    """This rank's rows of an output weight of which every rank of `group` holds `rows`, in order.

    Rows from `vocab_size` on only pad the vocabulary.
    """

    group: dist.ProcessGroup
    rows: int
    vocab_size: int

    @property
    def first(self) -> int:
        """The token id of row 0."""
        return self.group.rank() * self.rows

    @property
    def real(self) -> int:
        """How many of the rows, from row 0, belong to the vocabulary."""
        return min(max(self.vocab_size - self.first, 0), self.rows)

    def unknown(self, labels: Tensor) -> Tensor:
        """Which labels are no token of the vocabulary, on any rank."""
        return (labels < 0) | (labels >= self.vocab_size)


def log_probs_at(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    loss_mask: Tensor,
    *,
    vocab_size: int,
    chunk: int,
    sequence_parallel: bool,
    group: dist.ProcessGroup,
) -> Tensor:
    """Log-probs [number of True in `loss_mask`] float32 of `labels` where `loss_mask`, row by row.

    `hidden` is [sequence, batch, hidden], or its share of the sequence with `sequence_parallel`;
    `weight` [rows, hidden] this rank's rows of the output weight; `labels` [batch, sequence] token
    ids of the whole vocabulary, `loss_mask` [batch, sequence] bool, both whole on every rank.
    NaN where a label is no token of the vocabulary.
    """
    if sequence_parallel:
        # Each rank's gradient comes from its own rows of the weight: summed on the way back.
        hidden = tensor_parallel.gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=True, group=group
        )
    chosen = hidden.transpose(0, 1)[loss_mask]
    if not sequence_parallel:
        chosen = tensor_parallel.copy_to_tensor_model_parallel_region(chosen, group=group)
    shard = VocabularyShard(group, weight.shape[0], vocab_size)
    result: Tensor = ChunkedLogProb.apply(chosen, weight, labels[loss_mask], shard, chunk)
    return result


class ChunkedLogProb(torch.autograd.Function):
    """hidden [n, hidden], weight [rows, hidden], labels [n] -> log-probs [n] float32.

    The gradient for `hidden` is this rank's part of a sum over the group. Where Megatron's DDP
    gave the weight a `main_grad`, the weight's gradient is added there, in its precision, as
    Megatron's own linear layers do.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, shard: VocabularyShard, chunk: int
    ) -> Tensor:
        """Saves the normaliser [n] of each position instead of any logits."""
        target = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(target)
        for start in range(0, len(labels), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], weight, shard)
            target[part] = _target_logits(logits, labels[part], shard)
            normaliser[part] = _log_sum_exp(logits, shard.group)
        target.masked_fill_(shard.unknown(labels), float("nan"))
        ctx.save_for_backward(hidden, weight, labels, normaliser)
        # The parameter itself carries DDP's marks.
        ctx.parameter, ctx.shard, ctx.chunk = weight, shard, chunk
        return target - normaliser

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """d log p(y) / d logit_v = [v = y] - p(v), chunk by chunk."""
        hidden, weight, labels, normaliser = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_accumulator(ctx.parameter) if ctx.needs_input_grad[1] else None
        for start in range(0, len(labels), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = _logits(hidden[part], weight, ctx.shard)
            grad_logits = _grad_logits(
                logits, labels[part], normaliser[part], grad[part], ctx.shard
            )
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), hidden[part])
        return grad_hidden, _returned(ctx.parameter, grad_weight), None, None, None


def _logits(hidden: Tensor, weight: Tensor, shard: VocabularyShard) -> Tensor:
    """[chunk, rows] float32; -inf in the columns that pad the vocabulary."""
    logits = torch.mm(hidden, weight.t()).float()
    if shard.real < logits.shape[1]:
        logits[:, shard.real :] = float("-inf")
    return logits


def _local_ids(labels: Tensor, shard: VocabularyShard) -> tuple[Tensor, Tensor]:
    """Each label's column here (0 where it is another rank's) and whether it is this rank's."""
    local = labels - shard.first
    mine = (local >= 0) & (local < shard.real)
    return local.masked_fill(~mine, 0), mine


def _target_logits(logits: Tensor, labels: Tensor, shard: VocabularyShard) -> Tensor:
    local, mine = _local_ids(labels, shard)
    target = logits.gather(1, local[:, None])[:, 0].masked_fill(~mine, 0.0)
    if shard.group.size() > 1:
        dist.all_reduce(target, group=shard.group)
    return target


def _log_sum_exp(logits: Tensor, group: dist.ProcessGroup) -> Tensor:
    if group.size() == 1:
        return torch.logsumexp(logits, dim=1)
    largest = logits.amax(dim=1)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    total = (logits - largest[:, None]).exp_().sum(dim=1)
    dist.all_reduce(total, group=group)
    return largest + total.log()


def _grad_logits(
    logits: Tensor, labels: Tensor, normaliser: Tensor, grad: Tensor, shard: VocabularyShard
) -> Tensor:
    """[chunk, rows] float32, in the memory of `logits`."""
    probabilities = logits.sub_(normaliser[:, None]).exp_()
    grad_logits = probabilities.mul_(-grad[:, None])
    local, mine = _local_ids(labels, shard)
    return grad_logits.scatter_add_(1, local[:, None], grad.masked_fill(~mine, 0.0)[:, None])


def _weight_accumulator(weight: Tensor) -> Tensor:
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    return torch.zeros_like(weight, dtype=torch.float32) if main_grad is None else main_grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total.add_(torch.mm(left, right))


def _returned(weight: Tensor, grad_weight: Tensor | None) -> Tensor | None:
    """What autograd gets: the gradient, or zeros where it was added to `main_grad` already.

    Zeros and not None, so that DDP's hook on the parameter runs; a tied weight's embedding
    gradient is summed with them and DDP adds it, since Megatron marks such weights.
    """
    if grad_weight is None or grad_weight is not getattr(weight, "main_grad", None):
        return None if grad_weight is None else grad_weight.to(weight.dtype)
    weight.grad_added_to_main_grad = True  # type: ignore[attr-defined]
    return torch.zeros_like(weight)
