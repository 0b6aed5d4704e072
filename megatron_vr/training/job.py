"""What to train: examples, a model to begin from, a folder, settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from megatron_vr.config.settings import ModelSettings, TrainSettings
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.batches import BatchPlan, make_batch_plan
from megatron_vr.training.examples import Examples, read_examples


@dataclass(frozen=True, eq=False)
class TrainJob:
    """One training: `examples` (schema EXAMPLES), the Hugging Face folder `start_model` to begin
    from, and the `folder` that gets `checkpoints/`, `metrics.jsonl` and `tensorboard/`."""

    examples: pa.Table
    start_model: Path
    folder: Path
    settings: TrainSettings
    model: ModelSettings
    layout: Layout
    seed: int
    name: str
    overlap: bool = False
    tensorboard: bool = False
    wandb_project: str | None = None

    @cached_property
    def data(self) -> Examples:
        """The examples as arrays. Raises DataError for a wrong table."""
        return read_examples(self.examples)

    @cached_property
    def _plan(self) -> BatchPlan:
        data = self.data
        return make_batch_plan(
            data.weights, data.target_counts, data.lengths, self.settings, self.seed
        )

    def plan(self) -> BatchPlan:
        """All batches of the training. Raises DataError for examples that cannot be trained on."""
        return self._plan
