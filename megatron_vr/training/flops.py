"""Floating-point operations of a model, and the most that a device can do. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from megatron_vr.models.architecture import Architecture

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ModelFlops:
    """Operations of a model's matrix products, two for each multiply and add.

    `projections` are those of one token in all layers: queries, keys, values, attention output,
    gate, up and down, or, where there are experts, the router and those of the experts that a token
    chooses. `attention` are those of one pair of a query and a key in all layers: QKᵀ
    and PV of every head. `head` are those of one position projected to the vocabulary. Norms,
    activations, rotary positions and the softmax are no matrix products and are left out.
    """

    projections: int
    attention: int
    head: int

    @staticmethod
    def of(architecture: Architecture) -> ModelFlops:
        """The operations of `architecture`; padding of the vocabulary does not count."""
        a = architecture
        queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
        weights = a.hidden_size * (queries + 2 * keys)
        weights += queries * a.hidden_size
        if a.experts is None:
            weights += 3 * a.hidden_size * a.ffn_hidden_size
        else:
            weights += a.hidden_size * a.experts.count
            weights += 3 * a.hidden_size * a.experts.ffn_hidden_size * a.experts.per_token
        return ModelFlops(
            projections=2 * a.layers * weights,
            attention=4 * a.layers * queries,
            head=2 * a.hidden_size * a.vocab_size,
        )

    def forward(self, tokens: ArrayLike, targets: ArrayLike) -> Floats:
        """Operations [...] float64 of reading `tokens` [...] and projecting `targets` [...].

        For n tokens and m targets: n · projections + n (n + 1) / 2 · attention + m · head. Token t
        attends to itself and to all before it. n counts what the model reads: in training the last
        token of a sequence is only predicted (see `TokenTable.places`).
        """
        n, m = np.asarray(tokens, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        pairs = n * (n + 1) / 2
        return np.asarray(n * self.projections + pairs * self.attention + m * self.head)

    def training(self, tokens: ArrayLike, targets: ArrayLike) -> Floats:
        """Operations [...] float64 of a forward and a backward pass: 3 × `forward`.

        The backward pass has two products for each one of the forward pass. These are the model's
        operations: what is computed a second time to save memory, as activations, attention
        scores and the head's logits are, does not count.
        """
        return 3.0 * self.forward(tokens, targets)


@dataclass(frozen=True)
class _Peak:
    """Dense TFLOP/s of the devices whose name `pattern` matches."""

    pattern: str
    bfloat16: float
    float32: float


# NVIDIA's data sheets: bfloat16 on tensor cores without sparsity, float32 without them. H100 of
# other memory or with fewer units (HBM2e, 64 GB) are not listed, and so are not known.
_PEAKS = (
    _Peak(r"NVIDIA H100 80GB HBM3", 989.4, 66.9),
    _Peak(r"NVIDIA H100 PCIe", 756.0, 51.2),
    _Peak(r"NVIDIA H100 NVL", 835.5, 60.0),
    _Peak(r"NVIDIA H200", 989.4, 66.9),
    _Peak(r"NVIDIA H200 NVL", 835.5, 60.0),
    _Peak(r"NVIDIA H800", 989.4, 66.9),
    _Peak(r"NVIDIA H800 PCIe", 756.0, 51.2),
    _Peak(r"(NVIDIA )?A100-(SXM4|PCIE)-(40|80)GB|NVIDIA A100 80GB PCIe", 312.0, 19.5),
    _Peak(r"NVIDIA B200", 2250.0, 75.0),
)


def peak_tflops(device_name: str, dtype: torch.dtype) -> float | None:
    """The most dense TFLOP/s (10¹² operations a second) of a device, by the name torch gives it.

    float32 is without TF32. None where it is not known, as for a CPU, a part of a GPU (MIG), and
    other dtypes: a share of a guessed peak says nothing.
    """
    for peak in _PEAKS:
        if re.fullmatch(peak.pattern, device_name):
            return {torch.bfloat16: peak.bfloat16, torch.float32: peak.float32}.get(dtype)
    return None
