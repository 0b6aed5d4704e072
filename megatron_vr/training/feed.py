"""From a step's draws to this rank's weighted micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.parallel.packing import CostModel, pack_batch
from megatron_vr.training.batches import Draw
from megatron_vr.training.micro_batch import Integers, PackShape, TokenTable, to_device
from megatron_vr.training.update import Weighted


def micro_batch_multiple(config: TransformerConfig) -> int:
    """What divides the number of micro-batches: interleaved pipelines take them in groups."""
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    return int(config.pipeline_model_parallel_size) if interleaved else 1


@dataclass(frozen=True)
class Feed:
    """Packs for a model on `device`; `budget` is the largest number of tokens of a micro-batch."""

    table: TokenTable
    shape: PackShape
    cost: CostModel
    budget: int
    multiple: int
    device: torch.device

    @staticmethod
    def of(table: TokenTable, model: Any, budget: int) -> Feed:
        """The feed of `model` on this rank."""
        config = model.config
        return Feed(
            table=table,
            shape=PackShape.of(config),
            cost=CostModel(config.hidden_size),
            budget=budget,
            multiple=micro_batch_multiple(config),
            device=next(model.parameters()).device,
        )

    def packs(self, examples: Sequence[int] | Integers, ranks: int, rank: int) -> list[list[int]]:
        """The micro-batches of data-parallel rank `rank`, as sequences of the table."""
        places = self.table.places[np.asarray(examples, dtype=np.int64)].tolist()
        plan = pack_batch(places, ranks, self.budget, self.cost, self.multiple)
        return [list(pack) for pack in plan[rank]]

    def weighted(self, draws: Sequence[Draw]) -> list[Weighted]:
        """This rank's micro-batches of the global batch `draws`."""
        examples = np.array([draw.example for draw in draws])
        weights = np.array([draw.loss_weight for draw in draws], dtype=np.float32)
        packs = self.packs(
            examples,
            parallel_state.get_data_parallel_world_size(),
            parallel_state.get_data_parallel_rank(),
        )
        result = []
        for pack in packs:
            rows = np.array(pack, dtype=np.int64)
            batch = self.table.micro_batch(examples[rows], self.shape, self.device)
            per_target = weights[rows][batch.owners]
            result.append(Weighted(batch, to_device(per_target, self.device)))
        return result
