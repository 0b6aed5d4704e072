"""What is planned: a model, how it is split and computed, on how many devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from megatron_vr.cluster.planner.parameters import layers_of_rank
from megatron_vr.config.fp8_settings import ALIGN, Fp8Settings
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout


@dataclass(frozen=True)
class Case:
    """One training (or scoring) of `architecture`, as this package computes it.

    `processes` ranks, one on each GPU; `micro_batch_tokens` is the length of the longest pack.
    `fp8`: how the matrix products of the layers compute in FP8, None where they do not.
    """

    architecture: Architecture
    layout: Layout
    processes: int
    micro_batch_tokens: int
    spec: Literal["plain", "te"] = "te"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    fp8: Fp8Settings | None = None
    recompute: Literal["none", "selective", "full"] = "none"
    log_prob_chunk: int | Literal["auto"] = "auto"
    overlap: bool = False

    @property
    def data(self) -> int:
        """Copies of the model."""
        return self.layout.data_parallel(self.processes)

    @property
    def fp8_layers(self) -> range:
        """Layers, counted from 0, whose matrix products are in FP8."""
        if self.fp8 is None:
            return range(0)
        end = self.architecture.layers - self.fp8.last_layers_bf16
        return range(self.fp8.first_layers_bf16, end)

    @property
    def fp8_params(self) -> bool:
        """Whether their weights are kept in FP8 alone."""
        return self.fp8 is not None and self.fp8.params

    @property
    def without_fp8(self) -> Case:
        """The same packs, as layers that stay in bfloat16 compute them."""
        padded = self.rank_tokens * self.layout.context
        return replace(self, fp8=None, micro_batch_tokens=padded)

    def held(self, rank: int) -> tuple[int, int]:
        """How many layers of pipeline rank `rank` are in FP8, and how many are not."""
        layers = layers_of_rank(self.architecture, self.layout, rank)
        fast = len([layer for layer in layers if layer in self.fp8_layers])
        return fast, len(layers) - fast

    @property
    def unit(self) -> int:
        """What the places of a pack on a context-parallel rank are a multiple of (without FP8 only
        Megatron's own few)."""
        if self.fp8 is None:
            return 1
        shares = self.layout.tensor if self.layout.sequence_parallel else 1
        return shares * ALIGN[self.fp8.recipe]

    @property
    def rank_tokens(self) -> int:
        """Places of the longest pack on a context-parallel rank."""
        tokens = -(-self.micro_batch_tokens // self.layout.context)
        return tokens + -tokens % self.unit
