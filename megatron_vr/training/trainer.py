"""A training from a Hugging Face model to a checkpoint, resumed where it stopped."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_vr.convert.load import load_hf
from megatron_vr.errors import StageError
from megatron_vr.models.architecture import read_architecture
from megatron_vr.models.gpt import build_model
from megatron_vr.parallel.world import World
from megatron_vr.traces.durable import write_durably
from megatron_vr.training.batches import Draw, batch_sample_size
from megatron_vr.training.checkpoint import Checkpoints
from megatron_vr.training.feed import Feed
from megatron_vr.training.job import TrainJob
from megatron_vr.training.metrics import Sink, StepMetrics, check_sinks, open_sinks
from megatron_vr.training.optimizer import build_optimizer, build_schedule, learning_rate
from megatron_vr.training.state import TrainingState
from megatron_vr.training.update import Outcome, update, wrap_models

__all__ = ["TrainJob", "train"]

OnStep = Callable[[StepMetrics], None]


def train(job: TrainJob, on_step: OnStep | None = None) -> Path:
    """Train, and return the folder of the final checkpoint; every rank calls it.

    Megatron's process groups must stand for `job.layout`; they are left as they are. Begins at the
    newest whole checkpoint in `job.folder`, and is over at once where that is the final one.
    `on_step` is called on every rank after every step.
    Raises SettingsError, DataError or CheckpointError before anything is computed, StageError
    naming the step at which loss or gradient is not finite.
    """
    check_sinks(job.tensorboard, job.wandb_project)
    plan = job.plan()
    world = World(dist.get_rank(), dist.get_world_size())
    checkpoints = Checkpoints(job.folder / "checkpoints", job.settings.keep_last, _identity(job))
    newest = world.from_main(checkpoints.newest() if world.is_main else None)
    if newest is not None:
        checkpoints.check(newest)
    final = checkpoints.path(plan.steps)
    if newest == final:
        return final
    with _own_garbage():
        return _Training(job, checkpoints, newest).run(world, on_step)


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


def _identity(job: TrainJob) -> dict[str, float | int | str]:
    plan = job.plan()
    return {
        "steps": plan.steps,
        "batch_size": plan.batch_size,
        "normaliser": plan.normaliser,
        "examples": len(job.data.ids),
        "weighting": job.settings.weighting,
        "seed": job.seed,
        "dtype": job.model.dtype,
    }


class _Training:
    """The model, its optimizer and the place in the plan, while `train` runs."""

    def __init__(self, job: TrainJob, checkpoints: Checkpoints, newest: Path | None) -> None:
        self.job = job
        self.plan = job.plan()
        self.checkpoints = checkpoints
        architecture = read_architecture(job.start_model)
        models = build_model(
            architecture,
            job.layout,
            spec=job.model.spec,
            dtype=job.model.dtype,
            recompute=job.model.recompute,
            log_prob_chunk=job.model.log_prob_chunk,
        )
        if newest is None:
            load_hf(models, job.start_model, architecture)
        self.models = wrap_models(models)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[job.model.dtype]
        optimizer = build_optimizer(self.models, job.settings.optimizer, dtype)
        schedule = build_schedule(optimizer, job.settings.optimizer, self.plan.steps)
        self.state = TrainingState(models, optimizer, schedule)
        self.done = 0 if newest is None else checkpoints.load(newest, self.state)
        self.feed = Feed.of(job.data.table, models[0], job.settings.micro_batch_tokens)

    def run(self, world: World, on_step: OnStep | None) -> Path:
        job = self.job
        job.folder.mkdir(parents=True, exist_ok=True)
        sinks: list[Sink] = []
        if world.is_main:
            sinks = open_sinks(job.folder, self.done, job.name, job.tensorboard, job.wandb_project)
        try:
            while self.done < self.plan.steps:
                metrics = self._step()
                if metrics.step % job.settings.log_every == 0 or metrics.step == self.plan.steps:
                    for sink in sinks:
                        sink.write(metrics)
                if on_step is not None:
                    on_step(metrics)
                if metrics.step % job.settings.save_every == 0 or metrics.step == self.plan.steps:
                    self.checkpoints.save(metrics.step, self.state)
        finally:
            for sink in sinks:
                sink.close()
        return self.checkpoints.path(self.plan.steps)

    def _step(self) -> StepMetrics:
        began = time.perf_counter()
        draws = self.plan.batch(self.done)
        self.state.schedule.step(1)
        outcome = update(
            self.models, self.state.optimizer, self.feed.weighted(draws), self.plan.normaliser
        )
        if not (math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm)):
            raise self._not_finite(draws, outcome)
        self.done += 1
        seconds = time.perf_counter() - began
        tokens = sum(int(self.job.data.lengths[draw.example]) for draw in draws)
        return StepMetrics(
            step=self.done,
            loss=outcome.loss,
            grad_norm=outcome.grad_norm,
            learning_rate=learning_rate(self.state.optimizer),
            tokens_per_second=tokens / seconds,
            effective_sample_size=batch_sample_size(draws),
            seconds=seconds,
        )

    def _not_finite(self, draws: Sequence[Draw], outcome: Outcome) -> StageError:
        step = self.done + 1
        file = self.job.folder / f"not-finite-step-{step:06d}.json"
        if dist.get_rank() == 0:
            names = [self.job.data.ids[draw.example] for draw in draws]
            content = {"step": step, "loss": str(outcome.loss), "examples": names}
            write_durably(file, json.dumps(content, indent=1) + "\n")
        return StageError(
            f"{self.job.name}: step {step} has loss {outcome.loss} and gradient norm "
            f"{outcome.grad_norm}; the examples of its batch are in {file}. "
            "Look at them, or lower optimizer.learning_rate"
        )
