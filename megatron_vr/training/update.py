"""One optimizer update: forward and backward of a global batch, and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_vr.objectives.loss import weighted_negative_log_likelihood
from megatron_vr.training.micro_batch import MicroBatch


@dataclass(frozen=True)
class Weighted:
    """A micro-batch and the weight [targets] float32 of each of its targets."""

    batch: MicroBatch
    weights: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """The loss of a global batch and the norm of its gradient, the same on every rank."""

    loss: float
    grad_norm: float


def wrap_models(models: Sequence[Any]) -> list[DistributedDataParallel]:
    """This rank's stages with gradient buffers that are summed over the data-parallel ranks.

    Gradients are summed as they are: the loss alone says what they are divided by.
    """
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True, use_distributed_optimizer=True, overlap_grad_reduce=False
    )
    wrapped = []
    for chunk, model in enumerate(models):
        if not model.config.calculate_per_token_loss:
            raise ValueError("calculate_per_token_loss must be set before the model is wrapped")
        model.config.finalize_model_grads_func = _sum_gradients
        wrapped.append(
            DistributedDataParallel(
                config=model.config, ddp_config=config, module=model, disable_bucketing=chunk > 0
            )
        )
    return wrapped


def update(
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Sequence[Weighted],
    normaliser: float,
) -> Outcome:
    """One update from this rank's micro-batches, L = −(1/C) Σ w log p summed over all ranks.

    Neither the number of ranks nor the split into micro-batches changes loss or gradient beyond
    rounding.
    """
    for model in models:
        model.zero_grad_buffer()
    optimizer.zero_grad()
    interleaved = len(models) > 1
    streams = [iter(batches) for _ in models]
    losses = get_forward_backward_func()(
        forward_step_func=partial(_forward, normaliser=normaliser),
        data_iterator=streams if interleaved else streams[0],
        model=list(models) if interleaved else models[0],
        num_microbatches=len(batches),
        seq_length=batches[0].batch.tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    _, grad_norm, _ = optimizer.step()
    # Read last: waiting for the loss would keep a GPU from its optimizer step.
    return Outcome(_total(losses, batches[0].weights.device), float(grad_norm))


def run_model(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Log-probs of the targets on the last stage, hidden states on others."""
    output: torch.Tensor = model(
        batch.tokens,
        batch.positions,
        None,
        labels=batch.labels,
        loss_mask=batch.loss_mask,
        packed_seq_params=batch.packing,
    )
    return output


def _forward(stream: Any, model: Any, *, normaliser: float) -> tuple[torch.Tensor, Any]:
    """Megatron's forward step: the model's output, and how its loss follows from it."""
    weighted = next(stream)
    loss = partial(_loss, weights=weighted.weights, normaliser=normaliser)
    return run_model(model, weighted.batch), loss


def _loss(
    log_probs: torch.Tensor, *, weights: torch.Tensor, normaliser: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss = weighted_negative_log_likelihood(log_probs, weights, normaliser)
    # The second value is the token count that Megatron would divide by; see _sum_gradients.
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), loss.detach()


def _sum_gradients(models: list[Any], num_tokens: torch.Tensor | None = None, **rest: Any) -> None:
    finalize_model_grads(models, None, **rest)


def _total(losses: Sequence[torch.Tensor], device: torch.device) -> float:
    """The sum over micro-batches, data-parallel and context-parallel ranks, on every rank."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    # Only last stages have losses; tensor ranks have the same.
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        total += torch.stack(list(losses)).double().sum()
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return float(total)
