"""From a step's draws to this rank's weighted micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.parallel.packing import CostModel, MicroBatches, pack_batch
from megatron_vr.training.batches import Draw
from megatron_vr.training.micro_batch import MicroBatch, TokenTable, pack_shape, to_device
from megatron_vr.training.places import Integers, PackShape
from megatron_vr.training.update import Weighted

# Sequences of one prompt are packed together up to this part of the budget.
UNITS = 4


def micro_batch_multiple(config: TransformerConfig) -> int:
    """What divides the number of micro-batches: interleaved pipelines take them in groups."""
    interleaved = config.virtual_pipeline_model_parallel_size is not None
    return int(config.pipeline_model_parallel_size) if interleaved else 1


@dataclass(frozen=True)
class Fed:
    """A rank's share of a global batch.

    Over all ranks: `useful` is the share of computed places that hold a token (the rest is
    padding), `saved` are the lengths of prompts that were not computed again.
    """

    batches: list[Weighted]
    useful: float
    saved: Integers


@dataclass(frozen=True)
class Feed:
    """Packs for a model on `device`; `budget` is the largest number of tokens of a micro-batch."""

    table: TokenTable
    shape: PackShape
    cost: CostModel
    budget: int
    multiple: int
    share_prompts: bool
    device: torch.device

    @staticmethod
    def of(table: TokenTable, model: Any, budget: int, share_prompts: bool) -> Feed:
        """The feed of `model` on this rank."""
        config = model.config
        return Feed(
            table=table,
            shape=pack_shape(config),
            cost=CostModel.of(
                config.hidden_size,
                config.ffn_hidden_size,
                config.num_attention_heads * config.kv_channels,
                config.num_query_groups * config.kv_channels,
            ),
            budget=budget,
            multiple=micro_batch_multiple(config),
            share_prompts=share_prompts,
            device=next(model.parameters()).device,
        )

    def packs(self, examples: Sequence[int] | Integers, ranks: int) -> tuple[MicroBatches, ...]:
        """Each data-parallel rank's micro-batches, as indices into `examples`."""
        rows = np.asarray(examples, dtype=np.int64)
        units = self._units(rows)
        sizes = self.shape.rounded(self.table.places[rows])
        costs = [self.cost(size) for size in sizes.tolist()]
        plan = pack_batch(
            [self._length(rows, sizes, unit) for unit in units],
            ranks,
            self.budget,
            multiple=self.multiple,
            costs=[sum(costs[index] for index in unit) for unit in units],
        )
        return tuple(
            tuple(tuple(index for unit in pack for index in units[unit]) for pack in packs)
            for packs in plan
        )

    def weighted(self, draws: Sequence[Draw]) -> Fed:
        """This rank's micro-batches of the global batch `draws`."""
        examples = np.array([draw.example for draw in draws])
        weights = np.array([draw.loss_weight for draw in draws], dtype=np.float32)
        plan = self.packs(examples, parallel_state.get_data_parallel_world_size())
        batches = []
        for pack in plan[parallel_state.get_data_parallel_rank()]:
            rows = np.array(pack, dtype=np.int64)
            batch = self.micro_batch(examples[rows])
            per_target = weights[rows][batch.owners]
            batches.append(Weighted(batch, to_device(per_target, self.device)))
        return Fed(batches, *self._computed(examples, plan))

    def micro_batch(self, rows: Integers) -> MicroBatch:
        """One pack of sequences of the table, on this rank."""
        return self.table.micro_batch(
            rows, self.shape, self.device, share_prompts=self.share_prompts
        )

    def _units(self, rows: Integers) -> list[list[int]]:
        """Indices into `rows` that stay together: sequences of one prompt, while they take no more
        than a part of the budget, so that packs can still be filled."""
        if not self.share_prompts:
            return [[index] for index in range(len(rows))]
        units: list[list[int]] = []
        newest: dict[int, list[int]] = {}
        sizes = self.table.places[rows]
        for index, group in enumerate(self.table.prompt_groups[rows].tolist()):
            unit = newest.get(group)
            grown = unit and self._length(rows, sizes, [*unit, index]) <= self.budget // UNITS
            if unit is None or not grown:
                unit = newest[group] = []
                units.append(unit)
            unit.append(index)
        return units

    def _length(self, rows: Integers, sizes: Integers, unit: Sequence[int]) -> int:
        """The places that the sequences of `unit`, which have the same prompt, take together."""
        saved = int(self.table.prompts[rows[unit[0]]]) * (len(unit) - 1)
        return int(sizes[unit].sum()) - saved

    def _computed(self, examples: Integers, plan: Sequence[MicroBatches]) -> tuple[float, Integers]:
        """`useful` and `saved` of a `Fed`, over all ranks."""
        real = computed = 0
        saved = [np.zeros(0, dtype=np.int64)]
        for pack in (examples[list(pack)] for packs in plan for pack in packs):
            spared = self._saved(pack)
            places = int(self.table.places[pack].sum() - spared.sum())
            real += places
            computed += self.shape.total(self.table.places[pack], int(spared.sum()))
            saved.append(spared)
        return real / computed, np.concatenate(saved)

    def _saved(self, pack: Integers) -> Integers:
        """The prompts of a pack that stand there with another sequence already."""
        if not self.share_prompts or not len(pack):
            return np.zeros(0, dtype=np.int64)
        _, first = np.unique(self.table.prompt_groups[pack], return_index=True)
        return np.delete(self.table.prompts[pack], first)
