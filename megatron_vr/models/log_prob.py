"""Log-probs of chosen tokens from hidden states, without the logits of a whole sequence.

For a hidden state `h`, output weight `W` [vocabulary, hidden] and token `y`:

    log p(y) = (W h)_y − log Σ_v exp (W h)_v

Only positions that are asked for are projected, `chunk` of them at a time: logits of one chunk at
most are alive. The rows of `W` may be spread over tensor-parallel ranks; maximum, sum and target
logit are then reduced over them.

Gradients need the logits too. Where the caller knows beforehand what the loss's derivative by
each log-prob will be (a weighted sum of log-probs has its weights), they are computed while the
chunk's logits are there; otherwise the chunks are projected again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import tensor_parallel
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_vr.models.softmax import first_look, second_look
from megatron_vr.models.vocabulary import VocabularyShard

# Whether torch can add a product of bfloat16 to float32 on a GPU without rounding it before.
_ADDS_IN_FLOAT32 = "dtype_out" in torch.ops.aten.addmm.overloads()

# How far the derivative that backward brings may be from the one announced, relative to it.
DERIVATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Targets:
    """Where log-probs are wanted, and of which tokens.

    `labels` [batch, sequence] token ids, `mask` [batch, sequence] bool. `derivative` [number of
    True] float32: what backward will bring for each log-prob, if that is known. `entropy`: also
    the entropy at these positions.
    """

    labels: Tensor
    mask: Tensor
    derivative: Tensor | None = None
    entropy: bool = False

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool:
            raise ValueError(f"the mask says where to take log-probs; bool, not {self.mask.dtype}")


@dataclass(frozen=True)
class Head:
    """The output layer: `weight` [rows, hidden] is this rank's rows of the output weight, tokens
    from `vocab_size` on do not exist, `chunk` positions are projected at once."""

    weight: Tensor
    vocab_size: int
    chunk: int
    sequence_parallel: bool
    group: dist.ProcessGroup

    @property
    def shard(self) -> VocabularyShard:
        """The columns of the logits that are this rank's."""
        return VocabularyShard(self.group, self.weight.shape[0], self.vocab_size)


def log_probs_at(head: Head, hidden: Tensor, targets: Targets) -> Tensor:
    """Log-probs [number of True in the mask] float32, row by row; NaN for labels that do not exist.

    With `targets.entropy` [2, number of True]: log-probs, then entropies in nats (no gradient).
    `hidden` is [sequence, batch, hidden], or this rank's share of the sequence with sequence
    parallelism; the targets are whole on every rank. Raises RuntimeError in backward where
    `targets.derivative` was not the truth.
    """
    if head.sequence_parallel:
        # Each rank's gradient comes from its own rows of the weight: summed on the way back.
        hidden = tensor_parallel.gather_from_sequence_parallel_region(
            hidden, tensor_parallel_output_grad=True, group=head.group
        )
    chosen = hidden.transpose(0, 1)[targets.mask]
    if not head.sequence_parallel:
        chosen = tensor_parallel.copy_to_tensor_model_parallel_region(chosen, group=head.group)
    labels = targets.labels[targets.mask]
    log_probs: Tensor = ChunkedLogProb.apply(
        chosen, head.weight, labels, head.shard, head.chunk, targets.derivative
    )
    if not targets.entropy:
        return log_probs
    return torch.stack((log_probs, entropies(head, chosen)))


@torch.no_grad()
def entropies(head: Head, chosen: Tensor) -> Tensor:
    """−Σ_v p(v) log p(v) [n] float32, in nats, after the hidden states `chosen` [n, hidden]."""
    found = torch.empty(len(chosen), dtype=torch.float32, device=chosen.device)
    # Two tensors of a chunk's size are alive at once.
    for part in _parts(len(chosen), max(1, head.chunk // 2)):
        found[part] = head.shard.entropy(head.shard.logits(chosen[part], head.weight))
    return found


def _parts(count: int, chunk: int) -> Iterator[slice]:
    for start in range(0, count, chunk):
        yield slice(start, start + chunk)


class ChunkedLogProb(torch.autograd.Function):
    """hidden [n, hidden], weight [rows, hidden], labels [n] -> log-probs [n] float32.

    The gradient for `hidden` is this rank's part of a sum over the group. Where Megatron's DDP
    gave the weight a `main_grad`, the weight's gradient is added there, in its precision, as
    Megatron's own linear layers do: with a known derivative already in the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        shard: VocabularyShard,
        chunk: int,
        derivative: Tensor | None = None,
    ) -> Tensor:
        """Keeps gradients where `derivative` makes them, else a normaliser [n], never logits."""
        wanted = ctx.needs_input_grad[:2]
        early = derivative is not None and any(wanted)
        gradients = _Gradients.of(hidden, weight, wanted) if early else None
        target = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(target)
        for part in _parts(len(labels), chunk):
            logits = first_look(shard, hidden[part], weight, labels[part])
            target[part], normaliser[part] = logits.target, logits.normaliser
            if gradients is not None and derivative is not None:
                gradients.add(part, logits.gradient(derivative[part]))
            # Or this chunk's memory lives on while the next one is made.
            del logits
        target.masked_fill_(shard.unknown(labels), float("nan"))
        # The parameter itself, not a saved copy, carries DDP's marks.
        ctx.weight, ctx.shard, ctx.chunk, ctx.gradients = weight, shard, chunk, gradients
        ctx.save_for_backward(*((derivative,) if early else (hidden, labels, normaliser)))
        return target - normaliser

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """What forward prepared, or from the chunks' logits once more."""
        if ctx.gradients is not None:
            _check_derivative(grad, ctx.saved_tensors[0])
            return (*ctx.gradients.returned(), None, None, None, None)
        hidden, labels, normaliser = ctx.saved_tensors
        gradients = _Gradients.of(hidden, ctx.weight, ctx.needs_input_grad[:2])
        for part in _parts(len(labels), ctx.chunk):
            known = labels[part], normaliser[part]
            logits = second_look(ctx.shard, hidden[part], ctx.weight, *known)
            gradients.add(part, logits.gradient(grad[part]))
            del logits
        return (*gradients.returned(), None, None, None, None)


def _check_derivative(found: Tensor, announced: Tensor) -> None:
    """Raise RuntimeError where they differ; on a GPU the device raises, and nothing waits."""
    alike = ((found - announced).abs() <= DERIVATIVE_TOLERANCE * announced.abs()).all()
    told = (
        "the loss's derivative by the log-probs is not the one that was announced in "
        "Targets.derivative; announce the loss's own weights, or nothing"
    )
    if alike.is_cuda:
        torch._assert_async(alike, told)
    elif not alike:
        raise RuntimeError(told)


@dataclass(frozen=True)
class _Gradients:
    """Gradients of hidden states [n, hidden] and weight while chunks of logits add to them."""

    states: Tensor
    parameter: Tensor
    hidden: Tensor | None
    weight: Tensor | None

    @staticmethod
    def of(hidden: Tensor, parameter: Tensor, wanted: tuple[bool, bool]) -> _Gradients:
        main_grad: Tensor | None = getattr(parameter, "main_grad", None)
        if main_grad is None and wanted[1]:
            main_grad = torch.zeros_like(parameter, dtype=torch.float32)
        return _Gradients(
            states=hidden.detach(),
            parameter=parameter,
            hidden=torch.empty_like(hidden) if wanted[0] else None,
            weight=main_grad if wanted[1] else None,
        )

    def add(self, part: slice, logits: Tensor) -> None:
        """Take up a chunk's gradient by its logits [chunk, rows]."""
        logits = logits.to(self.parameter.dtype)
        if self.hidden is not None:
            torch.mm(logits, self.parameter.detach(), out=self.hidden[part])
        if self.weight is None:
            return
        if self.weight.dtype == logits.dtype:
            self.weight.addmm_(logits.t(), self.states[part])
        elif self.weight.is_cuda and _ADDS_IN_FLOAT32:
            terms = self.weight, logits.t(), self.states[part]
            torch.addmm(*terms, out_dtype=self.weight.dtype, out=self.weight)  # type: ignore[call-overload]
        else:
            self.weight.add_(torch.mm(logits.t(), self.states[part]))

    def returned(self) -> tuple[Tensor | None, Tensor | None]:
        """What autograd gets. Of a weight whose gradient is in `main_grad` already: nothing, or
        zeros where its embedding's gradient comes too and DDP adds the sum (tied weights)."""
        parameter = self.parameter
        if self.weight is None or self.weight is not getattr(parameter, "main_grad", None):
            given = None if self.weight is None else self.weight.to(parameter.dtype)
            return self.hidden, given
        parameter.grad_added_to_main_grad = True  # type: ignore[attr-defined]
        if getattr(parameter, "zero_out_wgrad", False):
            return self.hidden, torch.zeros_like(parameter)
        # DDP's hook wants to see a gradient, and drops it; this one takes no memory.
        parameter.grad = parameter.new_zeros(()).expand_as(parameter)
        return self.hidden, None
