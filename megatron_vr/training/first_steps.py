"""The first steps of a training, made for what they tell: nothing is kept of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from megatron_vr.errors import Requeue, SettingsError
from megatron_vr.training.job import TrainJob
from megatron_vr.training.metrics import StepMetrics
from megatron_vr.training.stepper import Stepper, own_garbage

WARM_UP = 0.2  # of the steps, whose times do not count: kernels are chosen and caches filled


@dataclass(frozen=True)
class FirstSteps:
    """What the first steps of a training told, the same on every rank.

    `losses` of each step; `not_finite`: the steps, from 1, in which nothing was updated because
    loss or gradient was not finite. `tokens_per_second` is the median over
    the later steps, those left out in which FP8 is measured;
    `fp8` the newest statistics of `Fp8Stats` by their names in StepMetrics, those that are known.
    """

    name: str
    losses: tuple[float, ...]
    not_finite: tuple[int, ...]
    tokens_per_second: float
    peak_memory_gib: float
    fp8: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """For a file; a loss that is not finite is null there."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        return vars(self) | {"losses": losses, "not_finite": list(self.not_finite)}

    @staticmethod
    def from_json(content: dict[str, Any]) -> FirstSteps:
        """What `as_json` gave. Raises KeyError or TypeError for anything else."""
        losses = (math.nan if loss is None else float(loss) for loss in content["losses"])
        return FirstSteps(
            name=str(content["name"]),
            losses=tuple(losses),
            not_finite=tuple(int(step) for step in content["not_finite"]),
            tokens_per_second=float(content["tokens_per_second"]),
            peak_memory_gib=float(content["peak_memory_gib"]),
            fp8={name: float(value) for name, value in content["fp8"].items()},
        )


def first_steps(
    job: TrainJob,
    steps: int,
    name: str,
    on_step: Callable[[StepMetrics], None] | None = None,
    asked_to_stop: Callable[[], bool] | None = None,
) -> FirstSteps:
    """Make the first `steps` steps of `job` as `trainer.train` would, on every rank.

    The same batches, learning rates and weights to begin from, but nothing is written, and steps
    that are not finite are skipped and counted whatever `not_finite` says. The model is freed
    before this returns. Raises SettingsError where the training has fewer steps, Requeue once
    `asked_to_stop` is true on any rank.
    """
    check_steps(job, steps)
    with own_garbage():
        told = _made(job, steps, name, on_step, asked_to_stop or (lambda: False))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return _summary(name, told, job.settings.log_every)


def check_steps(job: TrainJob, steps: int) -> None:
    """Raise SettingsError where the training has fewer steps."""
    whole = job.plan().steps
    if steps > whole:
        raise SettingsError(
            f"{job.name} has {whole} steps, fewer than the {steps} to be compared; ask for "
            f"at most {whole}, or train longer"
        )


def _made(
    job: TrainJob,
    steps: int,
    name: str,
    on_step: Callable[[StepMetrics], None] | None,
    asked: Callable[[], bool],
) -> list[tuple[StepMetrics, bool]]:
    """The metrics of each step, and whether it was finite."""
    stepper = Stepper(job)
    told = []
    for number in range(1, steps + 1):
        logged = number == steps or number % job.settings.log_every == 0
        step = stepper.step(stop=asked(), logged=logged)
        told.append((stepper.telemetry.metrics(step), step.outcome.finite))
        if on_step is not None:
            on_step(told[-1][0])
        if step.outcome.stop and number < steps:
            raise Requeue(
                f"asked to stop after step {number} of {steps} in {name}: the same command begins "
                f"{name} again"
            )
    return told


def _summary(name: str, told: Sequence[tuple[StepMetrics, bool]], log_every: int) -> FirstSteps:
    later = [metrics for metrics, _ in told][int(len(told) * WARM_UP) :]
    last = later[-1]
    # In logged steps FP8's tensors are measured, which takes time that bfloat16 does not need.
    quiet = [one for one in later if one is not last and one.step % log_every] or later
    return FirstSteps(
        name=name,
        losses=tuple(metrics.loss for metrics, _ in told),
        not_finite=tuple(metrics.step for metrics, finite in told if not finite),
        tokens_per_second=median(metrics.tokens_per_second for metrics in quiet),
        peak_memory_gib=last.peak_memory_gib,
        fp8={key: value for key, value in last.known().items() if key.startswith("fp8_")},
    )
