"""A training from a Hugging Face model to a checkpoint, resumed where it stopped."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_vr.convert.load import load_hf, load_megatron
from megatron_vr.errors import Requeue, StageError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.models.gpt import build_model
from megatron_vr.models.spec import shares_prompts
from megatron_vr.parallel.world import World
from megatron_vr.training.batches import Draw
from megatron_vr.training.checkpoint import Checkpoints, Kept, Progress
from megatron_vr.training.clock import StepClock
from megatron_vr.training.feed import Feed
from megatron_vr.training.job import TrainJob
from megatron_vr.training.metrics import Sink, StepMetrics, check_sinks, open_sinks
from megatron_vr.training.not_finite import keep_batch
from megatron_vr.training.optimizer import build_optimizer, build_schedule, learning_rate
from megatron_vr.training.state import TrainingState
from megatron_vr.training.telemetry import Step, Telemetry
from megatron_vr.training.update import Outcome, gathered_weights, update, wrap_models

__all__ = ["TrainJob", "train"]

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
    final checkpoint.
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
            models = _build(job, read_architecture(job.start_model))
            load_megatron(models, final)
            at_end(models)
        return final
    with _own_garbage():
        training = _Training(job, checkpoints, newest, asked_to_stop or (lambda: False))
        training.run(world, on_step)
        if at_end is not None:
            training.end(at_end)
    return final


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Collections inside look at what the training made only; it is freed on leaving.

    Megatron collects garbage at every save, which takes long where much is imported. The wrapped
    model and its gradient hooks refer to each other in circles.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.collect()


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
        **({"fp8": job.model.fp8.model_dump(mode="json")} if job.model.fp8 is not None else {}),
    }


def _build(job: TrainJob, architecture: Architecture) -> list[Any]:
    """This rank's stages, not filled yet."""
    return build_model(
        architecture,
        job.layout,
        spec=job.model.spec,
        dtype=job.model.dtype,
        recompute=job.model.recompute,
        log_prob_chunk=job.model.log_prob_chunk,
        attention=job.model.attention,
        fp8=job.model.fp8,
    )


class _Training:
    """The model, its optimizer and the place in the plan, while `train` runs."""

    def __init__(
        self, job: TrainJob, checkpoints: Checkpoints, newest: Path | None, asked: Asked
    ) -> None:
        self.job = job
        self.plan = job.plan()
        self.checkpoints = checkpoints
        self.asked = asked
        if torch.cuda.is_available():
            # The peak that is told is this training's, not the sampler's before it.
            torch.cuda.reset_peak_memory_stats()
        architecture = read_architecture(job.start_model)
        models = _build(job, architecture)
        if newest is None:
            load_hf(models, job.start_model, architecture)
        self.models = wrap_models(models, overlap=job.overlap, fp8=job.model.fp8)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[job.model.dtype]
        optimizer = build_optimizer(self.models, job.settings.optimizer, dtype, job.model.fp8)
        schedule = build_schedule(optimizer, job.settings.optimizer, self.plan.steps)
        self.state = TrainingState(models, optimizer, schedule)
        self.done = Progress() if newest is None else checkpoints.load(newest, self.state)
        budget, share = job.settings.micro_batch_tokens, shares_prompts(job.model.spec, job.layout)
        self.feed = Feed.of(job.data.table, models[0], budget, share)
        self.telemetry = Telemetry.of(job.data, architecture, dist.get_world_size(), dtype)
        self.clock = StepClock()

    def run(self, world: World, on_step: OnStep | None) -> None:
        job, steps = self.job, self.plan.steps
        job.folder.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = []
        if world.is_main:
            done = self.done.step
            sinks = open_sinks(job.folder, done, job.name, job.tensorboard, job.wandb_project)
        try:
            while self.done.step < steps:
                self.checkpoints.check_pending()
                step = self._step()
                metrics = self.telemetry.metrics(step)
                last = step.number == steps
                if last or step.number % job.settings.log_every == 0:
                    for sink in sinks:
                        sink.write(metrics)
                if on_step is not None:
                    on_step(metrics)
                if last or step.outcome.stop or step.number % job.settings.save_every == 0:
                    self._save()
                if step.outcome.stop and not last:
                    self._leave()
            self.checkpoints.settle()
        finally:
            self.checkpoints.close()
            for sink in sinks:
                sink.close()

    def end(self, at_end: AtEnd) -> None:
        with gathered_weights(self.models):
            at_end(self.state.models)

    def _step(self) -> Step:
        number, skipped = self.done.step + 1, self.done.skipped
        began = time.perf_counter()
        with self.clock.phase("data"):
            draws = self.plan.batch(self.done.step)
            fed = self.feed.weighted(draws)
        self.state.schedule.step(1)
        outcome = update(
            self.models,
            self.state.optimizer,
            fed.batches,
            self.plan.normaliser,
            self.job.settings.optimizer.clip,
            clock=self.clock,
            stop=self.asked(),
        )
        if not outcome.finite:
            skipped += 1
            self._not_finite(number, skipped, draws, outcome)
        self.done = Progress(number, skipped)
        return Step(
            number=number,
            draws=draws,
            outcome=outcome,
            learning_rate=learning_rate(self.state.optimizer),
            seconds=time.perf_counter() - began,
            phases=self.clock.take(),
            useful=fed.useful,
            saved=fed.saved,
            skipped=skipped,
        )

    def _not_finite(self, number: int, skipped: int, draws: list[Draw], outcome: Outcome) -> None:
        """Keep the batch; raise StageError unless the settings allow this update to be skipped."""
        file = self.job.folder / f"not-finite-step-{number:06d}.json"
        if dist.get_rank() == 0:
            keep_batch(file, self.job, draws, outcome)
        settings = self.job.settings
        told = (
            f"{self.job.name}: step {number} has loss {outcome.loss} and gradient norm "
            f"{outcome.grad_norm}; the examples of its batch are in {file}. "
        )
        if settings.not_finite == "stop":
            raise StageError(
                told + "Look at them, lower optimizer.learning_rate, or set not_finite: skip"
            )
        if skipped > settings.skips_allowed:
            raise StageError(
                told + f"It is update {skipped} to be skipped, more than "
                f"skips_allowed={settings.skips_allowed}: look at them, or lower "
                "optimizer.learning_rate"
            )

    def _save(self) -> None:
        with self.clock.phase("checkpoint"), gathered_weights(self.models):
            self.checkpoints.save(self.done, self.state)

    def _leave(self) -> None:
        """Raise Requeue once the checkpoint of this step is durable."""
        self.checkpoints.settle()
        raise Requeue(
            f"asked to stop: {self.job.name} is saved after step {self.done.step} of "
            f"{self.plan.steps}; the same command goes on from there"
        )
