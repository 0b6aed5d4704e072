"""A training from a Hugging Face model to a checkpoint, resumed where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing

from megatron_vr.convert.load import load_megatron
from megatron_vr.errors import Requeue, StageError
from megatron_vr.models.architecture import read_architecture
from megatron_vr.models.te_modules import without_fp8
from megatron_vr.parallel.world import World
from megatron_vr.training.checkpoint import Checkpoints, Kept
from megatron_vr.training.job import TrainJob
from megatron_vr.training.main_weights import rounded_main_weights
from megatron_vr.training.metrics import Sink, StepMetrics, check_sinks, open_sinks
from megatron_vr.training.not_finite import keep_batch
from megatron_vr.training.stepper import Stepper, build_stages, own_garbage
from megatron_vr.training.telemetry import Step
from megatron_vr.training.update import gathered_weights

__all__ = ["TrainJob", "skipped_updates", "train"]

OnStep = Callable[[StepMetrics], None]
Asked = Callable[[], bool]
AtEnd = Callable[[Sequence[Any]], None]


def train(
    job: TrainJob,
    on_step: OnStep | None = None,
    asked_to_stop: Asked | None = None,
    at_end: AtEnd | None = None,
) -> Path:
    """Train, and return the folder of the final checkpoint; every rank calls it.

    Megatron's process groups must stand for `job.layout`; they are left as they are. Begins at the
    newest whole checkpoint in `job.folder`, and is over at once where that is the final one.
    `on_step` is called on every rank after every step. Once `asked_to_stop` is true on any rank,
    all save after the step they are in and raise Requeue. `at_end` is called on every rank, also
    by a training that was over before, with this rank's bare stages, which hold the weights of the
    final checkpoint and compute without FP8.
    Raises SettingsError, DataError or CheckpointError before anything is computed, StageError
    naming the step at which loss or gradient is not finite.
    """
    check_sinks(job.tensorboard, job.wandb_project)
    plan = job.plan()
    world = World(dist.get_rank(), dist.get_world_size())
    checkpoints = Checkpoints(
        job.folder / "checkpoints",
        Kept(job.settings.keep_last, job.settings.keep_every),
        _identity(job),
        aside=job.settings.save_aside,
    )
    newest = world.from_main(checkpoints.newest() if world.is_main else None)
    if newest is not None:
        checkpoints.check(newest)
    final = checkpoints.path(plan.steps)
    if newest == final:
        if at_end is not None:
            models = build_stages(job, read_architecture(job.start_model), in_fp8=False)
            load_megatron(models, final)
            at_end(models)
        return final
    with own_garbage():
        training = _Training(job, checkpoints, newest, asked_to_stop or (lambda: False))
        training.run(world, on_step)
        if at_end is not None:
            training.end(at_end)
    return final


def skipped_updates(checkpoint: Path) -> int:
    """In how many of the steps before the whole `checkpoint` nothing was updated."""
    return int(dist_checkpointing.load_common_state_dict(str(checkpoint))["skipped"])


def _identity(job: TrainJob) -> dict[str, Any]:
    plan = job.plan()
    return {
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "normaliser": plan.normaliser,
        "examples": len(job.data.ids),
        "weighting": job.settings.weighting,
        "seed": job.seed,
        "dtype": job.model.dtype,
        # Also None: what was begun in FP8 does not go on without.
        "fp8": None if job.model.fp8 is None else job.model.fp8.model_dump(mode="json"),
    }


class _Training:
    """A job's steps and what is kept of them, while `train` runs."""

    def __init__(
        self, job: TrainJob, checkpoints: Checkpoints, newest: Path | None, asked: Asked
    ) -> None:
        self.job = job
        self.checkpoints = checkpoints
        self.asked = asked
        self.stepper = Stepper(job, load=newest is None)
        if newest is not None:
            self.stepper.done = checkpoints.load(newest, self.stepper.state)

    def run(self, world: World, on_step: OnStep | None) -> None:
        job, stepper = self.job, self.stepper
        steps, settings = stepper.plan.steps, job.settings
        job.folder.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = []
        if world.is_main:
            done = stepper.done.step
            sinks = open_sinks(job.folder, done, job.name, job.tensorboard, job.wandb_project)
        try:
            while stepper.done.step < steps:
                self.checkpoints.check_pending()
                number = stepper.done.step + 1
                last = number == steps
                logged = last or number % settings.log_every == 0
                step = stepper.step(stop=self.asked(), logged=logged)
                if not step.outcome.finite:
                    self._not_finite(step)
                metrics = stepper.telemetry.metrics(step)
                if logged:
                    for sink in sinks:
                        sink.write(metrics)
                if on_step is not None:
                    on_step(metrics)
                if last or step.outcome.stop or number % settings.save_every == 0:
                    self._save()
                if step.outcome.stop and not last:
                    self._leave()
            self.checkpoints.settle()
        finally:
            self.checkpoints.close()
            for sink in sinks:
                sink.close()

    def end(self, at_end: AtEnd) -> None:
        state = self.stepper.state
        with (
            gathered_weights(self.stepper.models),
            rounded_main_weights(state.models, state.optimizer),
            without_fp8(state.models),
        ):
            at_end(state.models)

    def _not_finite(self, step: Step) -> None:
        """Keep the batch; raise StageError unless the settings allow this update to be skipped."""
        file = self.job.folder / f"not-finite-step-{step.number:06d}.json"
        if dist.get_rank() == 0:
            keep_batch(file, self.job, step.draws, step.outcome)
        settings = self.job.settings
        told = (
            f"{self.job.name}: step {step.number} has loss {step.outcome.loss} and gradient norm "
            f"{step.outcome.grad_norm}; the examples of its batch are in {file}. "
        )
        if settings.not_finite == "stop":
            raise StageError(
                told + "Look at them, lower optimizer.learning_rate, or set not_finite: skip"
            )
        if step.skipped > settings.skips_allowed:
            raise StageError(
                told + f"It is update {step.skipped} to be skipped, more than "
                f"skips_allowed={settings.skips_allowed}: look at them, or lower "
                "optimizer.learning_rate"
            )

    def _save(self) -> None:
        with self.stepper.clock.phase("checkpoint"), gathered_weights(self.stepper.models):
            self.checkpoints.save(self.stepper.done, self.stepper.state)

    def _leave(self) -> None:
        """Raise Requeue once the checkpoint of this step is durable."""
        self.checkpoints.settle()
        raise Requeue(
            f"asked to stop: {self.job.name} is saved after step {self.stepper.done.step} of "
            f"{self.stepper.plan.steps}; the same command goes on from there"
        )
