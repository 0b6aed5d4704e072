"""Tensors that are stretches of files: read when they are used, gone when they are dropped."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import torch
from torch import Tensor


def map_tensor(path: Path, begin: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The contiguous tensor that stands at byte `begin` of `path`, through a map of its own.

    Its storage is just these bytes. Writing to it does not change the file.
    """
    count = torch.Size(shape).numel()
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    ahead = begin % mmap.ALLOCATIONGRANULARITY
    length = ahead + count * dtype.itemsize
    descriptor = os.open(path, os.O_RDONLY)
    try:
        stretch = mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=begin - ahead)
    finally:
        os.close(descriptor)
    # Read ahead all of it: faults one by one would ask the disk for little at a time.
    stretch.madvise(mmap.MADV_WILLNEED)
    if begin % dtype.itemsize:
        # Files may be packed without gaps; computing needs aligned numbers.
        unaligned = torch.frombuffer(stretch, dtype=torch.uint8, offset=ahead)
        return unaligned.clone().view(dtype).reshape(shape)
    return torch.frombuffer(stretch, dtype=dtype, count=count, offset=ahead).reshape(shape)


def with_own_storage(tensor: Tensor) -> Tensor:
    """The contiguous `tensor` with a storage of just its elements, in the same memory.

    What `torch.save` writes of a view is all of the storage behind it.
    """
    if tensor.nbytes in (0, tensor.untyped_storage().nbytes()):
        return tensor
    content = tensor.reshape(-1).view(torch.uint8).numpy()
    return torch.frombuffer(content, dtype=tensor.dtype).reshape(tensor.shape)
