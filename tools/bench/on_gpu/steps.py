"""The training step of the 4B and 8B shapes, as many of their layers as one card trains.

Micro-batches of 32768 places; nothing is recomputed. Random weights and tokens. A step is the
packing of one global batch (one micro-batch, or two of traces), its forward and backward pass, the
clipping and the update of float32 main weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from megatron_vr.cluster.planner.parameters import matrix_parameters
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.gpt import LOGITS_ON_CPU, LOGITS_ON_GPU
from megatron_vr.training.clock import PhaseSeconds, StepClock
from megatron_vr.training.flops import ModelFlops
from megatron_vr.training.micro_batch import TokenTable
from tools.bench.head import Inputs, chunk_of, chunked
from tools.bench.on_gpu.batches import (
    LENGTHS,
    budget,
    draws,
    places_of,
    random_table,
    targets_of,
)
from tools.bench.on_gpu.kernels import kernel_row
from tools.bench.on_gpu.ours import Training, forget_fp8, fp8_of
from tools.bench.on_gpu.place import Place, Row
from tools.bench.on_gpu.shapes import layers_that_fit, whole_shape
from tools.bench.on_gpu.timing import Timed, collect, forget_peak, median_seconds, peak_gib


def measure(case: str, place: Place) -> Iterator[Row]:
    """One of the cases of the part `step`: a shape, a recipe, and what is asked of them."""
    name, recipe, *asked = case.split()
    whole = whole_shape(name, place)
    architecture = fitting(whole, place)
    training = build(architecture, recipe, place)
    first, *others = (Step.of(lengths, training, architecture, place) for lengths in LENGTHS)
    if asked == ["kernels"]:
        yield kernel_row("kernels", first, place)
    elif asked == ["lengths"]:
        for step, lengths in zip(others, LENGTHS[1:], strict=True):
            yield Row(lengths, {"layers_of_shape": whole.layers, **step.measured()})
    else:
        yield Row(LENGTHS[0], {"layers_of_shape": whole.layers, **first.measured()})
        profile = first.profile()
        yield Row("profile", vars(profile))
        yield Row("all layers", all_layers(profile, architecture, whole, first))


def fitting(whole: Architecture, place: Place) -> Architecture:
    """`whole` with the layers that this card trains."""
    if place.rehearse:
        return whole
    memory = torch.cuda.mem_get_info()[1]
    layers = layers_that_fit(whole, budget(place), memory, place.smaller)
    return replace(whole, layers=layers)


def build(architecture: Architecture, recipe: str, place: Place) -> Training:
    """The training of a recipe, in a process that forgot the one before."""
    collect()
    forget_fp8()
    return Training.build(architecture, place, fp8_of(recipe, place))


@dataclass(frozen=True)
class Profile:
    """Seconds of a step whose phases wait for each other. `head` was measured by itself; `layers`
    is what is left of the forward and backward pass, the embedding's among it."""

    data: float
    layers: float
    head: float
    optimizer: float


@dataclass(frozen=True, eq=False)
class Step:
    """One global batch of one training."""

    training: Training
    architecture: Architecture
    table: TokenTable
    place: Place

    @staticmethod
    def of(lengths: str, training: Training, architecture: Architecture, place: Place) -> Step:
        """The batch of sequences as long as `lengths` says."""
        table = random_table(places_of(lengths, place), architecture.vocab_size)
        return Step(training, architecture, table, place)

    def __call__(self, clock: StepClock | None = None) -> float:
        """Make it; the loss."""
        drawn = draws(self.table)
        weights = zip(drawn, targets_of(self.table), strict=True)
        normaliser = sum(draw.loss_weight * targets for draw, targets in weights)
        feed = self.training.feed(self.table, budget(self.place))
        return self.training.step(feed, drawn, normaliser, clock).loss

    @property
    def flops(self) -> float:
        """The model's operations in it."""
        found = ModelFlops.of(self.architecture).training(self.table.places, targets_of(self.table))
        return float(np.sum(found))

    def measured(self) -> dict[str, Any]:
        """Its time, rates and memory."""
        collect()
        forget_peak()
        losses: list[float] = []
        timed = Timed.of(lambda: losses.append(self()), self.place)
        tokens = int(self.table.places.sum())
        feed = self.training.feed(self.table, budget(self.place))
        (packs,) = feed.packs(np.arange(len(self.table.places)), ranks=1)
        return {
            "layers": self.architecture.layers,
            "sequences": len(self.table.places),
            "packs": len(packs),
            "tokens": tokens,
            "targets": sum(targets_of(self.table)),
            "seconds": timed.seconds,
            "tokens_per_s": tokens / timed.seconds,
            "tflops": self.flops / timed.seconds / 1e12,
            **peak_gib(),
            "first_s": timed.first,
            "all_seconds": timed.all_seconds,
            "losses": losses,
        }

    def profile(self) -> Profile:
        """Where its time goes."""
        phases: list[PhaseSeconds] = []
        for _ in range(3):
            clock = StepClock(exact=True)
            self(clock)
            phases.append(clock.take())
        middle = sorted(phases, key=lambda each: each.forward_backward)[1]
        head = self._head()
        return Profile(middle.data, middle.forward_backward - head, head, middle.optimizer)

    def _head(self) -> float:
        """Seconds of the head alone, at as many targets."""
        a, memory = self.architecture, self.place.sized(LOGITS_ON_GPU, LOGITS_ON_CPU)
        targets = sum(targets_of(self.table))
        inputs = Inputs.random(targets, a.vocab_size, a.hidden_size, self.place.device)
        chunk = chunk_of(inputs, memory)
        return median_seconds(lambda: chunked(inputs, chunk), self.place, repeats=5)


def all_layers(
    profile: Profile, measured: Architecture, whole: Architecture, step: Step
) -> dict[str, Any]:
    """What a step of all layers would take by the times of this one, were there room for them:
    computed, not measured."""
    seconds = whole_seconds(profile, measured, whole)
    flops = replace(step, architecture=whole).flops
    tokens = int(step.table.places.sum())
    return {
        "computed_for_layers": whole.layers,
        "from_layers": measured.layers,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "tflops": flops / seconds / 1e12,
    }


def whole_seconds(profile: Profile, measured: Architecture, whole: Architecture) -> float:
    """The layers' time by their number, the optimizer's by the parameters'; head and data as they
    are."""
    parameters = matrix_parameters(whole) / matrix_parameters(measured)
    layers = profile.layers * whole.layers / measured.layers
    return profile.data + profile.head + layers + profile.optimizer * parameters
