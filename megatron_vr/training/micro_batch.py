"""Sequences as the tensors of one packed micro-batch.

The model reads token t and predicts token t + 1, so a sequence of n tokens takes n − 1 places of a
pack: its last token is only ever a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from numpy.typing import NDArray

from megatron_vr.config.fp8_settings import ALIGN
from megatron_vr.models.plain_layers import SharedPromptPack
from megatron_vr.training.places import Integers, PackShape, Places, shared, whole


def pack_shape(config: TransformerConfig) -> PackShape:
    """What a model of `config` demands of packs on this rank."""
    return PackShape(
        context=config.context_parallel_size,
        context_rank=parallel_state.get_context_parallel_rank(),
        sequence_parallel=config.tensor_model_parallel_size if config.sequence_parallel else 1,
        align=ALIGN[config.fp8_recipe] if config.fp8 else 1,
    )


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


@dataclass(frozen=True, eq=False)
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

    @cached_property
    def prompts(self) -> Integers:
        """The places [n] of each sequence before the one that predicts its first target."""
        targets = np.flatnonzero(self.is_target)
        places = np.searchsorted(targets, self.offsets[:-1])
        first = np.append(targets, self.offsets[-1])[places]
        before = np.minimum(first, self.offsets[1:]) - self.offsets[:-1] - 1
        return np.clip(before, 0, self.places - 1)

    @cached_property
    def prompt_groups(self) -> Integers:
        """A number [n] for each sequence, the same for those whose prompts have the same tokens."""
        known: dict[bytes, int] = {}
        ends = self.offsets[:-1] + self.prompts
        return np.array(
            [
                known.setdefault(self.tokens[start:end].tobytes(), len(known))
                for start, end in zip(self.offsets[:-1], ends, strict=True)
            ],
            dtype=np.int64,
        )

    def micro_batch(
        self,
        chosen: Sequence[int] | Integers,
        shape: PackShape,
        device: torch.device,
        *,
        share_prompts: bool = False,
    ) -> MicroBatch:
        """The pack of the sequences `chosen`; for none of them, one place without a target.

        With `share_prompts` a prompt that several of them have stands there once.
        """
        rows = np.asarray(chosen, dtype=np.int64)
        sizes, starts = np.diff(self.offsets)[rows] - 1, self.offsets[rows]
        if not len(rows):
            sizes = starts = np.zeros(1, dtype=np.int64)
        groups = self.prompt_groups[rows] if share_prompts else np.arange(len(rows))
        if len(np.unique(groups)) < len(rows):
            places = shared(np.maximum(sizes, 1), self.prompts[rows], groups, shape)
        else:
            places = whole(np.maximum(sizes, 1), shape)
        return self._filled(sizes, starts, places, device)

    def _filled(
        self, sizes: Integers, starts: Integers, places: Places, device: torch.device
    ) -> MicroBatch:
        owners, positions = places.owners, places.positions
        real = positions < sizes[owners]
        source = np.where(real, starts[owners] + positions, 0)
        following = source + real
        mask = real & self.is_target[following]
        return MicroBatch(
            tokens=_row(np.where(real, self.tokens[source], 0), device),
            positions=_row(positions, device),
            labels=_row(np.where(real, self.tokens[following], 0), device),
            loss_mask=_row(mask, device),
            packing=_packing(places, device),
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


def _packing(places: Places, device: torch.device) -> PackedSeqParams:
    boundaries = places.boundaries
    ends = to_device(boundaries.astype(np.int32), device)
    longest = int(np.diff(boundaries).max())
    fields: dict[str, Any] = {
        "qkv_format": "thd",
        "cu_seqlens_q": ends,
        "cu_seqlens_kv": ends,
        "max_seqlen_q": longest,
        "max_seqlen_kv": longest,
    }
    if places.segments:
        return SharedPromptPack(**fields, segments=places.segments)
    return PackedSeqParams(**fields)
