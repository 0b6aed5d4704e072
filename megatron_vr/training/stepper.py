"""A training's model and optimizer, and its steps one after the other. What they leave behind on
the disk is for others: `trainer` keeps checkpoints and metrics, `first_steps` nothing."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist

from megatron_vr.convert.load import load_hf
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.models.gpt import build_model
from megatron_vr.models.spec import shares_prompts
from megatron_vr.models.support import check_build
from megatron_vr.models.te_modules import forget_scales
from megatron_vr.training.checkpoint import Progress
from megatron_vr.training.clock import StepClock
from megatron_vr.training.feed import Feed
from megatron_vr.training.fp8_stats import Fp8Watch
from megatron_vr.training.job import TrainJob
from megatron_vr.training.optimizer import build_optimizer, build_schedule, learning_rate
from megatron_vr.training.state import TrainingState
from megatron_vr.training.telemetry import Step, Telemetry
from megatron_vr.training.update import update, wrap_models


@contextmanager
def own_garbage() -> Iterator[None]:
    """Collections inside look at what the training made only; it is freed on leaving.

    Megatron collects garbage at every save, which takes long where much is imported. The wrapped
    model and its gradient hooks refer to each other in circles. FP8's scales go too.
    """
    gc.freeze()
    try:
        yield
    finally:
        forget_scales()
        gc.unfreeze()
        gc.collect()


def build_stages(job: TrainJob, architecture: Architecture, *, in_fp8: bool = True) -> list[Any]:
    """This rank's stages of the job's model, not filled yet; not `in_fp8` where it shall not train,
    but say what its weights are. Raises SettingsError where it cannot be built here."""
    check_build(job.model, architecture, job.layout, training=in_fp8)
    return build_model(
        architecture,
        job.layout,
        spec=job.model.spec,
        dtype=job.model.dtype,
        recompute=job.model.recompute,
        log_prob_chunk=job.model.log_prob_chunk,
        attention=job.model.attention,
        fp8=job.model.fp8 if in_fp8 else None,
    )


class Stepper:
    """Makes the steps of `job`; every rank builds one and calls every method.

    Begins with the weights of `job.start_model`, unless `load` is false: then `state` and `done`
    are to be set from a checkpoint. Megatron's process groups must stand for `job.layout`.
    """

    def __init__(self, job: TrainJob, *, load: bool = True) -> None:
        self.job = job
        self.plan = job.plan()
        self.done = Progress()
        if torch.cuda.is_available():
            # The peak that is told is this training's, not the sampler's before it.
            torch.cuda.reset_peak_memory_stats()
        architecture = read_architecture(job.start_model)
        models = build_stages(job, architecture)
        if load:
            load_hf(models, job.start_model, architecture)
        self.models = wrap_models(models, overlap=job.overlap, fp8=job.model.fp8)
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[job.model.dtype]
        optimizer = build_optimizer(self.models, job.settings.optimizer, dtype, job.model.fp8)
        schedule = build_schedule(optimizer, job.settings.optimizer, self.plan.steps)
        self.state = TrainingState(models, optimizer, schedule)
        budget, share = job.settings.micro_batch_tokens, shares_prompts(job.model.spec, job.layout)
        self.clock = StepClock()
        self.telemetry = Telemetry.of(job.data, architecture, dist.get_world_size(), dtype)
        self._feed = Feed.of(job.data.table, models[0], budget, share)
        self._watch = Fp8Watch(models, job.model.fp8) if job.model.fp8 is not None else None

    def step(self, *, stop: bool = False, logged: bool = True) -> Step:
        """Make the next step. `stop` is this rank's wish, heard by all; what takes time to measure
        is measured where it is `logged`, which must be the same on all ranks."""
        number, skipped = self.done.step + 1, self.done.skipped
        watch = self._watch if logged else None
        began = time.perf_counter()
        with self.clock.phase("data"):
            draws = self.plan.batch(self.done.step)
            fed = self._feed.weighted(draws)
        self.state.schedule.step(1)
        with watch.watching() if watch is not None else nullcontext():
            outcome = update(
                self.models,
                self.state.optimizer,
                fed.batches,
                self.plan.normaliser,
                self.job.settings.optimizer.clip,
                clock=self.clock,
                stop=stop,
            )
        fp8 = watch.stats() if watch is not None else None
        self.done = Progress(number, skipped if outcome.finite else skipped + 1)
        return Step(
            number=number,
            draws=draws,
            outcome=outcome,
            learning_rate=learning_rate(self.state.optimizer),
            seconds=time.perf_counter() - began,
            phases=self.clock.take(),
            useful=fed.useful,
            saved=fed.saved,
            skipped=self.done.skipped,
            fp8=fp8,
        )
