"""Losses of a real small training in bf16 and with each FP8 recipe, from the same weights and
batches: a Qwen3 of 100 million parameters learns worked examples of the toy task.

`bf16 in other packs` is the same training once more with micro-batches of half the size: what
another order of summation alone does to the losses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pyarrow as pa

from megatron_vr.algorithm.examples import policy_references
from megatron_vr.config.settings import OptimizerSettings, TrainSettings
from megatron_vr.models.architecture import Architecture
from megatron_vr.problems.prompts import load_format
from megatron_vr.problems.source_settings import ToySource
from megatron_vr.problems.toy_source import toy_problems
from megatron_vr.problems.toy_tokenizer import make_tokenizer
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.batches import BatchPlan, make_batch_plan
from megatron_vr.training.examples import Examples, read_examples
from megatron_vr.training.optimizer import build_schedule
from tools.bench.on_gpu.ours import Training, forget_fp8, fp8_of
from tools.bench.on_gpu.place import Place, Row
from tools.bench.on_gpu.shapes import whole_shape
from tools.bench.on_gpu.timing import collect

STEPS = 300
# 4 layers of 26 million parameters: wide, since what a step waits for is the launching of kernels.
_SMALL: dict[str, Any] = {
    "hidden_size": 1536,
    "ffn_hidden_size": 4096,
    "layers": 4,
    "heads": 12,
    "kv_heads": 6,
    "head_dim": 128,
    "tied": True,
}
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
}


@dataclass(frozen=True)
class Run:
    """What all trainings share."""

    architecture: Architecture
    examples: Examples
    plan: BatchPlan
    settings: TrainSettings


def measure(case: str, place: Place) -> Iterator[Row]:
    """One of the cases of the part `curves`; the losses so far are told every 50 steps."""
    run = prepare(place)
    collect()
    forget_fp8()
    recipe, *other = case.split()
    training = Training.build(
        run.architecture, place, fp8_of(recipe, place), settings=run.settings.optimizer, seed=1
    )
    schedule = build_schedule(training.optimizer, run.settings.optimizer, run.plan.steps)
    budget = run.settings.micro_batch_tokens // (2 if other else 1)
    feed = training.feed(run.examples.table, budget)
    losses: list[float] = []
    norms: list[float] = []
    skipped, tokens, began = 0, 0, time.perf_counter()
    for number in range(run.plan.steps):
        schedule.step(1)
        draws = run.plan.batch(number)
        outcome = training.step(feed, draws, run.plan.normaliser)
        losses.append(outcome.loss)
        norms.append(outcome.grad_norm)
        skipped += not outcome.finite
        tokens += int(run.examples.table.places[[draw.example for draw in draws]].sum())
        if (number + 1) % 50 == 0 or number + 1 == run.plan.steps:
            seconds = time.perf_counter() - began
            told: dict[str, Any] = {
                "steps": number + 1,
                "of_steps": run.plan.steps,
                "skipped": skipped,
                "seconds": seconds,
                "tokens_per_s": tokens / seconds,
                "parameters": sum(p.numel() for p in training.bare.parameters()),
                "losses": losses,
                "grad_norms": norms,
            }
            yield Row("curve", told)


@cache
def prepare(place: Place) -> Run:
    """Worked examples of the toy task, and the plan of a training on them."""
    tokenizer = make_tokenizer()
    prompts = load_format("toy", tokenizer, None)
    # Nearly four passes: what is learned is the task, not the examples.
    count = place.sized(20000, 60)
    source = ToySource(kind="toy", count=count, references=count)
    rows = [vars(example) for example in policy_references(toy_problems(source), prompts)]
    examples = read_examples(pa.Table.from_pylist(rows, EXAMPLES))
    settings = TrainSettings(
        steps=place.sized(STEPS, 8),
        batch_size=place.sized(256, 8),
        micro_batch_tokens=place.sized(8192, 256),
        optimizer=OptimizerSettings(
            learning_rate=3e-4, beta2=0.95, weight_decay=0.05, warmup_steps=place.sized(30, 2)
        ),
    )
    plan = make_batch_plan(
        examples.weights, examples.target_counts, examples.lengths, settings, seed=1
    )
    shape = whole_shape("8b", place)
    sizes = place.sized(_SMALL, {**_SMALL, **_TINY})
    architecture = replace(shape, vocab_size=len(tokenizer), max_positions=512, **sizes)
    return Run(architecture, examples, plan, settings)
