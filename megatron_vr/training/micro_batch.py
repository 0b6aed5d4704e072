"""Sequences as the tensors of one packed micro-batch.

The model reads token t and predicts token t+1, so a sequence of n tokens takes n − 1 places of a
pack: its last token is only ever a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core.packed_seq_params import PackedSeqParams
from numpy.typing import NDArray

from megatron_vr.parallel.layout import Layout

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class PackShape:
    """What the ranks that share a sequence demand of its length.

    Context-parallel ranks take two chunks of every sequence each; sequence-parallel ranks take an
    equal share of a rank's tokens. Padding follows the last token of a sequence, where under a
    causal mask nothing sees it.
    """

    context: int = 1
    context_rank: int = 0
    sequence_parallel: int = 1

    @staticmethod
    def of(layout: Layout, context_rank: int) -> PackShape:
        """The shape on context-parallel rank `context_rank` of `layout`."""
        return PackShape(
            context=layout.context,
            context_rank=context_rank,
            sequence_parallel=layout.tensor if layout.sequence_parallel else 1,
        )

    def padded(self, places: Integers) -> Integers:
        """The places that each sequence of a pack takes with its padding."""
        multiple = 2 * self.context if self.context > 1 else 1
        padded = -(-places // multiple) * multiple
        padded[-1] += -int(padded.sum()) % (multiple * self.sequence_parallel)
        return padded

    def longest(self, places: int) -> int:
        """An upper bound of what a sequence of `places` adds to any pack."""
        multiple = 2 * self.context if self.context > 1 else 1
        return -(-places // multiple) * multiple

    def share(self, boundaries: Integers) -> Integers | None:
        """Pack positions of this context-parallel rank: chunks r and 2c − 1 − r of each sequence.

        None where the rank has them all. Both chunks together cost every rank the same attention.
        """
        if self.context == 1:
            return None
        chosen = []
        for start, end in zip(boundaries[:-1], boundaries[1:], strict=True):
            chunk = (end - start) // (2 * self.context)
            for number in (self.context_rank, 2 * self.context - 1 - self.context_rank):
                chosen.append(np.arange(start + number * chunk, start + (number + 1) * chunk))
        return np.concatenate(chosen)


@dataclass(frozen=True)
class MicroBatch:
    """A pack of sequences: [1, places] each, places being this rank's share of the pack.

    `tokens`, `positions`, `labels` int64, `loss_mask` bool. `owners` [targets] int64: for each
    True in `loss_mask`, in order, the pack's sequence it is of, and `places` [targets] int64 the
    token it predicts, counted from the start of that sequence.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    loss_mask: torch.Tensor
    packing: PackedSeqParams
    owners: Integers
    places: Integers


@dataclass(frozen=True)
class TokenTable:
    """Sequences end to end: `tokens` [total] int64 and `targets` [total] bool, sequence i between
    `offsets[i]` and `offsets[i + 1]` ([n + 1] int64)."""

    tokens: Integers
    targets: NDArray[np.bool_]
    offsets: Integers

    @staticmethod
    def of(sequences: Sequence[Sequence[int]], targets: Sequence[NDArray[np.bool_]]) -> TokenTable:
        """From token ids and, as long, which of them are targets."""
        offsets = np.cumsum([0, *map(len, sequences)])
        tokens = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
        nothing = [np.empty(0, dtype=np.int64)]
        return TokenTable(
            np.concatenate(tokens or nothing),
            np.concatenate(list(targets) or nothing).astype(bool),
            offsets.astype(np.int64),
        )

    @property
    def places(self) -> Integers:
        """The places that each sequence takes in a pack: all its tokens but the last."""
        return np.maximum(np.diff(self.offsets) - 1, 1)

    def micro_batch(
        self, chosen: Sequence[int], shape: PackShape, device: torch.device
    ) -> MicroBatch:
        """The pack of the sequences `chosen`; without any, one place without a target."""
        rows = np.asarray(chosen, dtype=np.int64)
        sizes = np.diff(self.offsets)[rows] - 1
        starts = self.offsets[rows]
        if not len(rows):
            sizes, starts = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
        padded = shape.padded(np.maximum(sizes, 1))
        boundaries = np.concatenate([[0], np.cumsum(padded)])
        owners = np.repeat(np.arange(len(padded)), padded)
        positions = np.arange(boundaries[-1]) - boundaries[owners]
        share = shape.share(boundaries)
        if share is not None:
            owners, positions = owners[share], positions[share]
        return self._gather(starts, sizes, owners, positions, _packing(boundaries, device), device)

    def _gather(
        self,
        starts: Integers,
        sizes: Integers,
        owners: Integers,
        positions: Integers,
        packing: PackedSeqParams,
        device: torch.device,
    ) -> MicroBatch:
        real = positions < sizes[owners]
        source = np.where(real, starts[owners] + positions, 0)
        following = np.where(real, source + 1, 0)
        mask = real & self.targets[following] if len(self.tokens) else real
        return MicroBatch(
            tokens=_row(np.where(real, self.tokens[source], 0), device),
            positions=_row(positions, device),
            labels=_row(np.where(real, self.tokens[following], 0), device),
            loss_mask=_row(mask, device),
            packing=packing,
            owners=owners[mask],
            places=positions[mask] + 1,
        )


def _row(values: NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """[1, len(values)] on `device`."""
    return to_device(torch.from_numpy(np.ascontiguousarray(values)), device)[None]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`, without waiting for a copy to a GPU."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def _packing(boundaries: Integers, device: torch.device) -> PackedSeqParams:
    ends = to_device(torch.from_numpy(boundaries.astype(np.int32)), device)
    longest = int(np.diff(boundaries).max())
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=ends,
        cu_seqlens_kv=ends,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
