"""Bytes of one transformer layer's activations, by the spec that computes it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMemory:
    """`kept` for the backward pass, `kept_selective` where the attention is computed again;
    `backward` is the most that the gradients take above `kept` while it is freed, `forward` the
    most that the layer's forward pass holds where nothing is kept."""

    kept: int
    kept_selective: int
    backward: int
    forward: int
