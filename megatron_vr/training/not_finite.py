"""What is kept of a batch whose loss or gradient was not finite."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from megatron_vr.traces.durable import write_durably
from megatron_vr.training.batches import Draw
from megatron_vr.training.job import TrainJob
from megatron_vr.training.update import Outcome


def keep_batch(file: Path, job: TrainJob, draws: Sequence[Draw], outcome: Outcome) -> None:
    """Write `file` (loss, gradient norm, ids and weights of the examples) and, with the suffix
    .parquet, the examples themselves: a table that can be read, or trained on, as it is."""
    rows = [draw.example for draw in draws]
    content = {
        "loss": str(outcome.loss),
        "grad_norm": str(outcome.grad_norm),
        "examples": [job.data.ids[row] for row in rows],
        "weights": [draw.loss_weight for draw in draws],
    }
    pq.write_table(job.examples.take(rows), file.with_suffix(".parquet"))
    write_durably(file, json.dumps(content, indent=1) + "\n")
