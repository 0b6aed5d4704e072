"""The log-prob head on the device: values, gradients and memory against the dense softmax."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_vr.models.log_prob import Head, Targets, log_probs_at
from tests.gpu.conftest import Measured
from tests.gpu.models import HALF_SPACING, distance
from tests.gpu.place import Place

# Odd, and padded as tensor parallelism would.
VOCABULARY, PADDED, HIDDEN, PLACES, CHUNK = 5003, 5008, 256, 512, 96


def inputs(place: Place) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """bfloat16 states [places, 1, hidden] and weight, labels, and what each log-prob counts."""
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(PLACES, 1, HIDDEN, generator=generator)
    weight = torch.randn(PADDED, HIDDEN, generator=generator) / HIDDEN**0.5 * 3
    labels = torch.randint(0, VOCABULARY, (1, PLACES), generator=generator)
    counts = torch.rand(PLACES, generator=generator)
    low = [tensor.bfloat16().to(place.device).requires_grad_() for tensor in (states, weight)]
    return low[0], low[1], labels.to(place.device), counts.to(place.device)


def _world() -> dist.ProcessGroup:
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def dense(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = (states[:, 0] @ weight[:VOCABULARY].t()).float()
    return logits.log_softmax(-1).gather(-1, labels[0, :, None])[:, 0]


def chunked(
    states: Tensor, weight: Tensor, labels: Tensor, derivative: Tensor | None, chunk: int = CHUNK
) -> Tensor:
    head = Head(weight, VOCABULARY, chunk, sequence_parallel=False, group=_world())
    mask = torch.ones_like(labels, dtype=torch.bool)
    return log_probs_at(head, states, Targets(labels, mask, derivative))


@pytest.mark.parametrize("announced", [True, False])
def test_the_heads_values_and_gradients_are_the_dense_ones(
    announced: bool, place: Place, measured: Measured
) -> None:
    states, weight, labels, counts = inputs(place)
    found = chunked(states, weight, labels, counts if announced else None)
    wide = [tensor.detach().float().requires_grad_() for tensor in (states, weight)]
    exact, theirs = dense(wide[0], wide[1], labels), dense(states, weight, labels)
    assert found.dtype == torch.float32

    # The logits are rounded to bfloat16: the label's, and those of the sum.
    limit = 2 * HALF_SPACING * float((wide[0][:, 0] @ wide[1].t()).detach().abs().max())
    largest = float((found - exact).detach().abs().max())
    measured(largest_difference=largest, limit=limit)
    assert largest < limit

    errors = {}
    expected = torch.autograd.grad(counts @ exact, wide)
    rounded = torch.autograd.grad(counts @ theirs, (states, weight))
    own = torch.autograd.grad(counts @ found, (states, weight))
    for name, got, low, wanted in zip(("states", "weight"), own, rounded, expected, strict=True):
        errors[name] = (distance(got, wanted), distance(low, wanted))
    measured(gradient_error_and_that_of_dense_bfloat16=errors)
    for name, (ours, of_dense) in errors.items():
        assert ours < 1.5 * max(of_dense, HALF_SPACING), name


@pytest.mark.needs_gpu("a CPU does not count the memory of tensors")
def test_the_heads_peak_memory_is_far_below_the_logits_size(
    place: Place, measured: Measured
) -> None:
    places, vocabulary, chunk = 8192, 65536, 256
    states = torch.randn(places, 1, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, device="cuda", dtype=torch.bfloat16)
    weight.requires_grad_()
    labels = torch.randint(0, vocabulary, (1, places), device="cuda")
    head = Head(weight, vocabulary, chunk, sequence_parallel=False, group=_world())
    counts = torch.rand(places, device="cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    targets = Targets(labels, torch.ones_like(labels, dtype=torch.bool), counts)
    (counts @ log_probs_at(head, states, targets)).backward()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    logits = 4 * places * vocabulary
    # A chunk's logits in float32 and bfloat16 with what is made of them, gradients in float32 and
    # in the parameters' own precision.
    allowed = 4 * (4 * chunk * vocabulary) + 4 * (4 * vocabulary * HIDDEN) + 2**26
    measured(peak_mib=peak / 2**20, allowed_mib=allowed / 2**20, logits_mib=logits / 2**20)
    assert peak < allowed < logits / 2
