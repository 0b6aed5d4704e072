"""Small trainings for the tests, and what they leave on the disk. Imports no transformers: the
ranks of a test import this."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from megatron_vr.config.settings import ModelSettings, OptimizerSettings, TrainSettings
from megatron_vr.parallel.layout import Layout
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.trainer import TrainJob

VOCABULARY = 131
# Examples, and sequences to score, that begin with the same prompt.
PROMPT = [17, 5, 99, 23, 42]
SAME_PROMPT = (0, 3, 5, 6, 7)
# The example that some tests' models have no number for.
POISONED = 4
WEIGHTS = [0.7, 1.9, 0.0, 0.2, 1.0, 3.1, 0.05, 1.3, 0.6]

# A large epsilon: elements with next to no gradient must not be moved by its rounding.
OPTIMIZER = OptimizerSettings(
    learning_rate=3e-3,
    beta1=0.8,
    beta2=0.9,
    epsilon=1e-4,
    weight_decay=0.1,
    clip=0.5,
    warmup_steps=2,
    final_fraction=0.2,
)


def rows() -> list[dict[str, Any]]:
    """Examples of unequal lengths and weights, one of weight 0; some have the same prompt."""
    generator = torch.Generator().manual_seed(11)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for index, weight in enumerate(WEIGHTS):
        length = integer(5, 30)
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        start = integer(1, length - 1)
        if index in SAME_PROMPT:
            ids, start = PROMPT + ids, len(PROMPT)
        found.append(
            {
                "example_id": f"example-{index}",
                "problem_id": f"problem-{index // 2}",
                "origin": "posterior",
                "token_ids": ids,
                "target_start": start,
                "weight": weight,
            }
        )
    return found


def job(start_model: Path, folder: Path, layout: Layout | None = None, **changes: Any) -> TrainJob:
    """A training of 6 steps of 5 examples; `changes` are of its settings, `dtype`, `seed`,
    `overlap` or `recompute`."""
    dtype, seed = changes.pop("dtype", "float32"), changes.pop("seed", 5)
    overlap, recompute = changes.pop("overlap", False), changes.pop("recompute", "none")
    settings: dict[str, Any] = {
        "steps": 6,
        "batch_size": 5,
        "micro_batch_tokens": 64,
        "optimizer": OPTIMIZER,
        "save_every": 2,
        "log_every": 1,
    } | changes
    return TrainJob(
        examples=pa.Table.from_pylist(rows(), EXAMPLES),
        start_model=start_model,
        folder=folder,
        settings=TrainSettings(**settings),
        model=ModelSettings(
            path=str(start_model), dtype=dtype, log_prob_chunk=16, recompute=recompute
        ),
        layout=layout or Layout(),
        seed=seed,
        name="a test",
        overlap=overlap,
    )


def differing(first: Path, second: Path) -> list[str]:
    """What is not bit for bit the same in two checkpoints: parameters, moments, the rest."""
    from megatron.core import dist_checkpointing

    one, two = (dict(dist_checkpointing.load_plain_tensors(str(path))) for path in (first, second))
    assert one.keys() == two.keys(), f"{one.keys() ^ two.keys()} are in one checkpoint only"
    assert any(name.startswith("optimizer.state.exp_avg_sq") for name in one)
    assert {"optimizer", "schedule", "step"} <= one.keys()
    return [name for name, value in one.items() if not _same(value, two[name])]


def _same(one: Any, two: Any) -> bool:
    return torch.equal(one, two) if isinstance(one, torch.Tensor) else bool(one == two)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics file, without what the machine's speed makes of them."""
    timed = {
        *("seconds", "tokens_per_second", "tflops", "straggler", "peak_memory_gib"),
        *("data_seconds", "forward_backward_seconds", "optimizer_seconds", "checkpoint_seconds"),
    }
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def scored_sequences(seed: int, count: int) -> list[tuple[Sequence[int], tuple[Any, ...]]]:
    """Token ids of unequal lengths, each with two spans that need not touch."""
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Sequence[int], tuple[Any, ...]]] = []
    for _ in range(count):
        length = int(torch.randint(6, 40, (), generator=generator))
        ids = torch.randint(0, VOCABULARY, (length,), generator=generator).tolist()
        cuts = torch.randperm(length - 1, generator=generator)[:4].sort().values + 1
        first, second, third, fourth = cuts.tolist()
        if len(found) in SAME_PROMPT:
            ids, spans = PROMPT + ids, ((len(PROMPT), second + 5), (third + 5, fourth + 5))
        else:
            spans = ((first, second), (third, fourth))
        found.append((tuple(ids), spans))
    return found
