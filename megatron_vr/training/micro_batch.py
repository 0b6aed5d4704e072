"""Sequences as the tensors of one packed micro-batch.

The model reads token t and predicts token t + 1, so a sequence of n tokens takes n − 1 places of a
pack: its last token is only ever a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PackShape:
    """What the ranks that share a sequence demand of its length.

    Each of `context` ranks takes two chunks of every sequence; each of `sequence_parallel` ranks
    an equal share of what is then on a rank. Padding follows the last token of a sequence, where
    under a causal mask nothing sees it.
    """

    context: int = 1
    context_rank: int = 0
    sequence_parallel: int = 1

    @staticmethod
    def of(config: TransformerConfig) -> PackShape:
        """The shape on this rank for a model of `config`."""
        return PackShape(
            context=config.context_parallel_size,
            context_rank=parallel_state.get_context_parallel_rank(),
            sequence_parallel=config.tensor_model_parallel_size if config.sequence_parallel else 1,
        )

    @property
    def multiple(self) -> int:
        """What the places of every sequence are padded to a multiple of."""
        return 2 * self.context if self.context > 1 else 1

    def padded(self, places: Integers) -> Integers:
        """The places [n ≥ 1] of each sequence of a pack with its padding."""
        padded = -(-places // self.multiple) * self.multiple
        padded[-1] += -int(padded.sum()) % (self.multiple * self.sequence_parallel)
        return padded

    def share(self, boundaries: Integers) -> Integers:
        """The pack positions of this context-parallel rank, ascending within a sequence.

        Of c ranks, rank r has chunks r and 2c − 1 − r of each sequence: together they cost every
        rank the same causal attention. `boundaries` [n + 1] are the sequences' ends from 0.
        """
        if self.context == 1:
            return np.arange(boundaries[-1])
        chosen = []
        for start, end in pairwise(boundaries):
            chunk = (end - start) // (2 * self.context)
            for number in (self.context_rank, 2 * self.context - 1 - self.context_rank):
                chosen.append(np.arange(start + number * chunk, start + (number + 1) * chunk))
        return np.concatenate(chosen)


@dataclass(frozen=True)
class MicroBatch:
    """A pack of sequences, this rank's share of its places.

    `tokens`, `positions`, `labels` [1, places] int64 and `loss_mask` [1, places] bool. For each
    True of the mask, in order, `owners` [targets] is the pack's sequence it belongs to and
    `targets` [targets] the index within that sequence of the token it predicts (int64).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    packing: PackedSeqParams
    owners: Integers
    targets: Integers


@dataclass(frozen=True)
class TokenTable:
    """Sequences end to end: `tokens` [total] and `is_target` [total] bool; sequence i lies between
    `offsets[i]` and `offsets[i + 1]` ([n + 1] int64). A first token is never a target."""

    tokens: NDArray[np.integer[Any]]
    is_target: NDArray[np.bool_]
    offsets: Integers

    @property
    def places(self) -> Integers:
        """The places [n] that each sequence takes in a pack."""
        return np.maximum(np.diff(self.offsets) - 1, 1)

    def micro_batch(
        self, chosen: Sequence[int] | Integers, shape: PackShape, device: torch.device
    ) -> MicroBatch:
        """The pack of the sequences `chosen`; for none of them, one place without a target."""
        rows = np.asarray(chosen, dtype=np.int64)
        sizes, starts = np.diff(self.offsets)[rows] - 1, self.offsets[rows]
        if not len(rows):
            sizes = starts = np.zeros(1, dtype=np.int64)
        padded = shape.padded(np.maximum(sizes, 1))
        boundaries = np.concatenate([[0], np.cumsum(padded)])
        share = shape.share(boundaries)
        owners = np.repeat(np.arange(len(padded)), padded)[share]
        positions = share - boundaries[owners]
        real = positions < sizes[owners]
        source = np.where(real, starts[owners] + positions, 0)
        following = source + real
        mask = real & self.is_target[following]
        return MicroBatch(
            tokens=_row(np.where(real, self.tokens[source], 0), device),
            positions=_row(positions, device),
            labels=_row(np.where(real, self.tokens[following], 0), device),
            loss_mask=_row(mask, device),
            packing=_packing(boundaries, device),
            owners=owners[mask],
            targets=positions[mask] + 1,
        )


def to_device(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """`values` on `device`, without waiting for a copy to a GPU."""
    tensor = torch.from_numpy(values)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _row(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    if values.dtype != np.bool_:
        values = values.astype(np.int64, copy=False)
    return to_device(values, device)[None]


def _packing(boundaries: Integers, device: torch.device) -> PackedSeqParams:
    ends = to_device(boundaries.astype(np.int32), device)
    longest = int(np.diff(boundaries).max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
