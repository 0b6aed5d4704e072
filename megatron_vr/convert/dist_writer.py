"""Write a torch_dist checkpoint without Megatron: its files one at a time, then its contents.

A file holds pieces, each as `torch.save` writes it, one after the other; `.metadata` says which
block of which parameter stands where. It is what Megatron's own save makes, and its loader reads.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_vr.convert.mapped import with_own_storage
from megatron_vr.traces.durable import sync_file

_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}

_EMPTY = "__extra_state.distcp"

# A piece in a file: its key, its block's offsets and sizes in the whole tensor, its place (JSON).
Piece = dict[str, Any]


@contextmanager
def unchecked_sums() -> Iterator[None]:
    """Zeros in place of the check sums of `torch.save`, which cost more than the writing does
    and which no reader looks at."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


def write_piece(
    file: IO[bytes], name: str, key: str, offsets: Iterable[int], block: Tensor
) -> Piece:
    """Append the contiguous `block` of tensor `key`, in file `name`.

    Offsets have all the tensor's axes.
    """
    begin = file.tell()
    try:
        torch.save(with_own_storage(block), file)
    except RuntimeError as error:
        # A write that fails is followed by a complaint about the archive it leaves unfinished.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    return {
        "key": key,
        "offsets": list(offsets),
        "sizes": list(block.shape),
        "file": name,
        "begin": begin,
        "length": file.tell() - begin,
    }


def write_contents(
    folder: Path,
    pieces: Iterable[Piece],
    whole: dict[str, tuple[list[int], torch.dtype]],
    empty: Iterable[str],
) -> None:
    """Write what makes `pieces` a checkpoint of the tensors `whole`: key → (shape, precision).

    The objects `empty`, extra states without content, are stored once for all.
    """
    chunks: dict[str, list[ChunkStorageMetadata]] = {key: [] for key in whole}
    storage = {}
    for piece in pieces:
        offsets, sizes = torch.Size(piece["offsets"]), torch.Size(piece["sizes"])
        place = MetadataIndex(piece["key"], offsets, len(chunks[piece["key"]]))
        chunks[piece["key"]].append(ChunkStorageMetadata(offsets, sizes))
        storage[place] = _StorageInfo(piece["file"], piece["begin"], piece["length"])
    tensors: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {
        key: TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(shape), chunks[key])
        for key, (shape, dtype) in whole.items()
    }
    # What Transformer Engine has where there is no FP8, in a list as Megatron stores objects.
    torch.save([torch.empty(0, dtype=torch.uint8)], folder / _EMPTY)
    size = (folder / _EMPTY).stat().st_size
    for name in empty:
        tensors[name] = BytesStorageMetadata()
        storage[MetadataIndex(name)] = _StorageInfo(_EMPTY, 0, size)
    torch.save({"checkpoint_version": 3.0, "iteration": 0}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")
    with open(folder / ".metadata", "wb") as file:
        pickle.dump(Metadata(tensors, storage_data=storage), file)
    for name in (_EMPTY, "common.pt", "metadata.json", ".metadata"):
        sync_file(folder / name)
