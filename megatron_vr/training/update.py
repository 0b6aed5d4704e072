"""One optimizer update: forward and backward of a global batch, and the step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.log_prob import Targets
from megatron_vr.models.te_modules import fuse_weight_gradients
from megatron_vr.objectives.loss import derivative_by_log_prob, weighted_negative_log_likelihood
from megatron_vr.training.clock import StepClock, peak_memory_gib
from megatron_vr.training.megatron_settings import ddp_fields
from megatron_vr.training.micro_batch import MicroBatch
from megatron_vr.training.optimizer import clip_gradient, step_with_clipped


@dataclass(frozen=True)
class Weighted:
    """A micro-batch and the weight [targets] float32 of each of its targets."""

    batch: MicroBatch
    weights: torch.Tensor


@dataclass(frozen=True)
class Outcome:
    """What became of a global batch.

    The same on every rank. Where loss or gradient is not finite nothing was updated. `stop`: some
    rank was asked to. `seconds` are each rank's own in forward and backward, before it waits for
    the others' gradients; `memory_gib` is the largest peak of a rank.
    """

    loss: float
    grad_norm: float
    stop: bool
    seconds: tuple[float, ...]
    memory_gib: float

    @property
    def finite(self) -> bool:
        """Whether the parameters were updated."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def wrap_models(
    models: Sequence[Any], *, overlap: bool = False, fp8: Fp8Settings | None = None
) -> list[DistributedDataParallel]:
    """This rank's stages with gradient buffers that are summed over the data-parallel ranks.

    Gradients are summed as they are: the loss alone says what they are divided by. With `overlap`
    they are summed, and updated weights gathered, while the model computes. Transformer Engine's
    layers add to them by themselves.
    """
    config = DistributedDataParallelConfig(**ddp_fields(overlap=overlap, fp8=fp8))
    finalise = SumGradients()
    wrapped = []
    for chunk, model in enumerate(models):
        if not model.config.calculate_per_token_loss:
            raise ValueError("calculate_per_token_loss must be set before the model is wrapped")
        model.config.finalize_model_grads_func = finalise
        wrapped.append(
            DistributedDataParallel(
                config=model.config, ddp_config=config, module=model, disable_bucketing=chunk > 0
            )
        )
    fuse_weight_gradients(models)
    if overlap:
        syncs = [model.no_sync for model in wrapped]
        for model in models:
            model.config.no_sync_func = syncs if len(syncs) > 1 else syncs[0]
    return wrapped


class SumGradients:
    """Megatron's last act of a backward pass; `called_at` is when this rank came to it."""

    called_at = 0.0

    def __call__(
        self, models: list[Any], num_tokens: torch.Tensor | None = None, **rest: Any
    ) -> None:
        """Sum the gradients over ranks and divide them by nothing, whatever the token count."""
        self.called_at = time.perf_counter()
        finalize_model_grads(models, None, **rest)


def update(
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Sequence[Weighted],
    normaliser: float,
    clip: float,
    *,
    clock: StepClock | None = None,
    stop: bool = False,
) -> Outcome:
    """One update from this rank's micro-batches, L = −(1/C) Σ w log p summed over all ranks.

    Neither the number of ranks nor the split into micro-batches changes loss or gradient beyond
    rounding. The gradient's norm is clipped to `clip`. Nothing is updated where loss or norm is
    not finite. `stop` is this rank's wish, heard by all.
    """
    clock = clock or StepClock()
    with clock.phase("forward_backward"):
        began = time.perf_counter()
        losses = _forward_backward(models, optimizer, batches, normaliser)
        seconds = models[0].config.finalize_model_grads_func.called_at - began
        loss, stops, seconds_of, memory_of = _shared(losses, stop, seconds, batches[0].weights)
    with clock.phase("optimizer"):
        norm = clip_gradient(optimizer, clip)
        outcome = Outcome(loss, norm, any(stops), tuple(seconds_of), max(memory_of))
        if outcome.finite:
            step_with_clipped(optimizer)
    return outcome


def _forward_backward(
    models: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Sequence[Weighted],
    normaliser: float,
) -> list[torch.Tensor]:
    """The losses of this rank's micro-batches (last stages only); gradients are in the buffers."""
    for model in models:
        model.zero_grad_buffer()
    optimizer.zero_grad()
    interleaved = len(models) > 1
    streams = [iter(batches) for _ in models]
    losses: list[torch.Tensor] = get_forward_backward_func()(
        forward_step_func=partial(_forward, normaliser=normaliser),
        data_iterator=streams if interleaved else streams[0],
        model=list(models) if interleaved else models[0],
        num_microbatches=len(batches),
        seq_length=batches[0].batch.tokens.shape[1],
        micro_batch_size=1,
        forward_only=False,
    )
    return losses


def run_model(
    model: Any,
    batch: MicroBatch,
    *,
    derivative: torch.Tensor | None = None,
    entropy: bool = False,
) -> torch.Tensor:
    """What `log_probs_at` gives for the targets on the last stage, hidden states on others."""
    output: torch.Tensor = model(
        batch.tokens,
        batch.positions,
        None,
        labels=Targets(batch.labels, batch.loss_mask, derivative, entropy),
        packed_seq_params=batch.packing,
    )
    return output


def _forward(stream: Any, model: Any, *, normaliser: float) -> tuple[torch.Tensor, Any]:
    """Megatron's forward step: the model's output, and how its loss follows from it."""
    weighted = next(stream)
    derivative = derivative_by_log_prob(weighted.weights, normaliser)
    loss = partial(_loss, weights=weighted.weights, normaliser=normaliser)
    return run_model(model, weighted.batch, derivative=derivative), loss


def _loss(
    log_probs: torch.Tensor, *, weights: torch.Tensor, normaliser: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    loss = weighted_negative_log_likelihood(log_probs, weights, normaliser)
    # The second value is the token count that Megatron would divide by; see SumGradients.
    return loss, torch.zeros((), dtype=torch.int, device=loss.device), loss.detach()


def _shared(
    losses: Sequence[torch.Tensor], stop: bool, seconds: float, like: torch.Tensor
) -> tuple[float, list[float], list[float], list[float]]:
    """The losses' sum over micro-batches, data- and context-parallel ranks, and of each rank
    whether it wishes to stop, its seconds and its peak of memory: on every rank, at once."""
    size, rank = dist.get_world_size(), dist.get_rank()
    told = torch.zeros(3, size, dtype=torch.float64)
    told[:, rank] = torch.tensor([float(stop), seconds, peak_memory_gib()], dtype=torch.float64)
    all_of = torch.cat((torch.zeros(1, dtype=torch.float64), told.flatten())).to(like.device)
    # Only last stages have losses; tensor ranks have the same.
    if losses and parallel_state.get_tensor_model_parallel_rank() == 0:
        all_of[0] = torch.stack(list(losses)).double().sum()
    if size > 1:
        dist.all_reduce(all_of)
    loss, *values = all_of.tolist()
    return loss, values[:size], values[size : 2 * size], values[2 * size :]


@contextmanager
def gathered_weights(models: Sequence[DistributedDataParallel]) -> Iterator[None]:
    """Inside, the weights of `models` are those after the last update, also where they are
    gathered only when the model next computes."""
    later = [model for model in models if model.ddp_config.overlap_param_gather]
    for model in later:
        model.disable_forward_pre_hook()
    try:
        yield
    finally:
        for model in later:
            model.enable_forward_pre_hook()
