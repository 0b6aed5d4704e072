"""What a GPU process holds besides tensors of ours: figures that were not measured here."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

MIB, GIB = 2**20, 2**30


@dataclass(frozen=True)
class Overheads:
    """Each an assumption, and where it is from.

    `context`: CUDA's context and loaded kernels; nvidia-smi shows 0.5 to 0.6 GiB for an empty
    torch process on an H100. `communicator`: NCCL's buffers for one group of more than one rank;
    4 MiB (NCCL_BUFFSIZE's default) × channels × peers, 0.2 to 0.6 GiB seen in practice.
    `workspace`: cuBLAS' 32 MiB on Hopper (torch's default CUBLAS_WORKSPACE_CONFIG), as much of
    Transformer Engine's, and cuDNN's. `fragmented`: share of activations and head that the
    caching allocator reserves and cannot use; expandable_segments makes it small.
    """

    context: int = 600 * MIB
    communicator: int = 384 * MIB
    workspace: int = 128 * MIB
    fragmented: Fraction = Fraction(3, 100)


# A CPU has nothing of these.
NONE = Overheads(0, 0, 0, Fraction(0))
ON_GPU = Overheads()

# Rotary tables of so many lengths are cached by Megatron (RotaryEmbedding.forward).
ROTARY_TABLES = 32
