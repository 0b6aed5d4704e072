"""What is known of a step when it is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from megatron_vr.models.architecture import Architecture
from megatron_vr.training.batches import Draw, batch_sample_size
from megatron_vr.training.clock import PhaseSeconds, spread
from megatron_vr.training.examples import Examples
from megatron_vr.training.flops import ModelFlops, peak_tflops
from megatron_vr.training.fp8_stats import Fp8Stats
from megatron_vr.training.metrics import StepMetrics
from megatron_vr.training.places import Integers
from megatron_vr.training.update import Outcome


@dataclass(frozen=True)
class Step:
    """One step as it went; `seconds` from its first to its last act, without checkpoints; `saved`
    are the lengths of shared prompts that were not computed again; `fp8` where it was watched."""

    number: int
    draws: Sequence[Draw]
    outcome: Outcome
    learning_rate: float
    seconds: float
    phases: PhaseSeconds
    useful: float
    saved: Integers
    skipped: int
    fp8: Fp8Stats | None = None


@dataclass(frozen=True)
class Telemetry:
    """Makes metrics of steps on `data`; `peak` is a device's TFLOP/s, if known."""

    data: Examples
    flops: ModelFlops
    devices: int
    peak: float | None

    @staticmethod
    def of(
        data: Examples, architecture: Architecture, devices: int, dtype: torch.dtype
    ) -> Telemetry:
        """For a model of `architecture` and `dtype` on `devices` of this process's kind."""
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        return Telemetry(data, ModelFlops.of(architecture), devices, peak_tflops(name, dtype))

    def metrics(self, step: Step) -> StepMetrics:
        """The metrics of `step`."""
        examples = np.array([draw.example for draw in step.draws])
        operations = self.flops.training(
            self.data.table.places[examples], self.data.target_counts[examples]
        )
        spared = self.flops.training(step.saved, np.zeros_like(step.saved))
        total = float(np.sum(operations) - np.sum(spared))
        tflops = total / step.seconds / self.devices / 1e12
        return StepMetrics(
            step=step.number,
            loss=step.outcome.loss,
            grad_norm=step.outcome.grad_norm,
            learning_rate=step.learning_rate,
            tokens_per_second=float(self.data.lengths[examples].sum()) / step.seconds,
            effective_sample_size=batch_sample_size(step.draws),
            seconds=step.seconds,
            tflops=tflops,
            mfu=None if self.peak is None else tflops / self.peak,
            data_seconds=step.phases.data,
            forward_backward_seconds=step.phases.forward_backward,
            optimizer_seconds=step.phases.optimizer,
            checkpoint_seconds=step.phases.checkpoint,
            straggler=spread(step.outcome.seconds),
            peak_memory_gib=step.outcome.memory_gib,
            useful=step.useful,
            skipped=step.skipped,
            **_named(step.fp8),
        )


def _named(fp8: Fp8Stats | None) -> dict[str, float | None]:
    """As the fields of StepMetrics."""
    return {} if fp8 is None else {f"fp8_{name}": value for name, value in asdict(fp8).items()}
