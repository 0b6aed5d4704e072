"""Small trainings whose examples can be learned, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import ModelSettings, OptimizerSettings, TrainSettings
from megatron_vr.config.spec_choice import Spec
from megatron_vr.parallel.layout import Layout
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.scoring import Sequenced, score
from megatron_vr.training.trainer import TrainJob
from tests.gpu.models import sequences
from tests.gpu.place import Place

EXAMPLE_COUNT = 360
# Of the tokens, which nothing can predict: losses stay far from zero.
NOISE = 0.3


def rows() -> list[dict[str, Any]]:
    """Arithmetic progressions modulo 61 with noise, of unequal lengths and weights; nothing before
    the fourth token is a target."""
    generator = torch.Generator().manual_seed(17)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for index in range(EXAMPLE_COUNT):
        start, step, length = integer(0, 61), integer(1, 7), integer(8, 60)
        noise = torch.randint(1, 61, (length,), generator=generator)
        noise *= torch.rand(length, generator=generator) < NOISE
        found.append(
            {
                "example_id": f"example-{index}",
                "problem_id": f"problem-{index}",
                "origin": "posterior",
                "token_ids": [100 + (start + step * t + int(noise[t])) % 61 for t in range(length)],
                "target_start": 3,
                "weight": 0.5 + (index % 4) / 2,
            }
        )
    return found


def job(
    start_model: Path,
    folder: Path,
    place: Place,
    *,
    fp8: Fp8Settings | None = None,
    spec: Spec | None = None,
    overlap: bool = False,
    **changes: Any,
) -> TrainJob:
    """A training in bfloat16, of 6 steps of 12 examples in several packs."""
    # Narrow models learn by larger steps.
    rate = 4e-3 if place.rehearsing else 1e-3
    settings: dict[str, Any] = {
        "steps": 6,
        "batch_size": 12,
        "micro_batch_tokens": 256,
        "optimizer": OptimizerSettings(learning_rate=rate, warmup_steps=2, weight_decay=0.1),
        "save_every": 2,
        "log_every": 1,
    }
    model = ModelSettings(
        path=str(start_model), spec=spec or place.spec, dtype="bfloat16", fp8=place.fp8(fp8)
    )
    return TrainJob(
        examples=pa.Table.from_pylist(rows(), EXAMPLES),
        start_model=start_model,
        folder=folder,
        settings=TrainSettings(**settings | changes),
        model=model,
        layout=Layout(),
        seed=5,
        name="a test",
        overlap=overlap,
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics of a training's steps."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def scores(models: Any) -> torch.Tensor:
    """Log-probs [tokens] of some sequences by the scoring pass."""
    asked = [Sequenced(ids.tolist(), ((1, len(ids)),)) for ids in sequences() if len(ids) > 1]
    found = score(models, asked, micro_batch_tokens=128)
    return torch.cat([torch.from_numpy(one.log_probs) for one in found])


def opened(model: ModelSettings, folder: Path) -> list[Any]:
    """The Hugging Face model in `folder` as the scoring stage opens it."""
    from megatron_vr.algorithm.megatron import Megatron

    return Megatron(model, Layout(), data_rank=0, data_size=1, writes=True).load(folder)
