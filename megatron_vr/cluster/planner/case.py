"""What is planned: a model, how it is split and computed, on how many devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout


@dataclass(frozen=True)
class Case:
    """One training (or scoring) of `architecture`, as this package computes it.

    `processes` ranks, one on each GPU; `micro_batch_tokens` is the length of the longest pack.
    `fp8`: matrix products of the layers in FP8, weights kept in bfloat16.
    """

    architecture: Architecture
    layout: Layout
    processes: int
    micro_batch_tokens: int
    spec: Literal["plain", "te"] = "te"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    fp8: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    log_prob_chunk: int | Literal["auto"] = "auto"
    overlap: bool = False

    @property
    def data(self) -> int:
        """Copies of the model."""
        return self.layout.data_parallel(self.processes)
