"""Read parts of tensors from a distributed checkpoint, in one process and without Megatron."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path, PosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_vr.convert.mapped import map_tensor
from megatron_vr.convert.maps import Index
from megatron_vr.errors import CheckpointError

CONTENTS = ".metadata"

# Whose classes, all of them plain data, a table of contents may be made of.
_DATA_CLASSES = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
)
_PLAIN = (torch.Size, torch.serialization._get_layout, PosixPath)


def check_finished(folder: Path) -> None:
    """Raise CheckpointError unless `folder` is a checkpoint that was written to its end."""
    if not (folder / CONTENTS).is_file():
        raise CheckpointError(
            f"{folder} is not a finished Megatron checkpoint: it has no {CONTENTS} file."
        )


class TensorCheckpoint:
    """The tensors of a torch_dist checkpoint folder, read a part at a time.

    `objects` are the names of what else it holds.
    """

    def __init__(self, folder: str | Path) -> None:
        """Raises CheckpointError when `folder` is not such a checkpoint."""
        self.folder = Path(folder)
        check_finished(self.folder)
        metadata = _read_contents(self.folder / CONTENTS)
        self._storage: dict[Any, Any] = metadata.storage_data
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

        self.objects = metadata.state_dict_metadata.keys() - self._tensors.keys()

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    @property
    def keys(self) -> set[str]:
        """The keys of all tensors, those of the optimizer among them."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """The tensor's precision."""
        found: torch.dtype = self._tensors[key].properties.dtype
        return found

    def entry(self, key: str, index: Index) -> Tensor:
        """What stands at `index` of the first axes: one layer (and expert) of a parameter."""
        shape = self.shape(key)[len(index) :]
        block = self.part(key, [*index, *[0] * len(shape)], (*[1] * len(index), *shape))
        return block.reshape(shape)

    def part(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The block of `sizes` that starts at `offsets`, in the stored precision.

        Raises CheckpointError when the stored pieces do not cover it or a file is damaged.
        """
        block = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, self._tensors[key], [block])
        found = sum(item.lengths.numel() for item in items)
        if found != block.sizes.numel():
            raise CheckpointError(
                f"{self.folder}: {found} of {block.sizes.numel()} elements of {key} are stored."
            )
        if len(items) == 1:
            return self._piece(key, items[0])
        target = torch.empty(block.sizes, dtype=self.dtype(key))
        for item in items:
            _narrowed(target, item.dest_offsets, item.lengths).copy_(self._piece(key, item))
        return target

    def _piece(self, key: str, item: ReadItem) -> Tensor:
        """What `item` asks of one stored piece."""
        stored = self._storage[item.storage_index]
        path = self.folder / stored.relative_path
        if getattr(stored, "transform_descriptors", None):
            raise CheckpointError(f"{path} is compressed; save the checkpoint without extensions.")
        try:
            piece = _map_saved(path, stored.offset, stored.length)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, BadZipFile) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: {key} cannot be read ({reason}).") from error
        return _narrowed(piece, item.storage_offsets, item.lengths)


def _read_contents(path: Path) -> Metadata:
    try:
        with open(path, "rb") as file:
            found = _Contents(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}).") from error
    if not isinstance(found, Metadata):
        raise CheckpointError(f"{path} is not the table of contents of a checkpoint.")
    return found


class _Contents(pickle.Unpickler):
    """Unpickles what tables of contents are made of, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        root = module.split(".")[0]
        found = super().find_class(module, name) if root in ("torch", "pathlib") else None
        plain = isinstance(found, torch.dtype) or any(found is known for known in _PLAIN)
        data = isinstance(found, type) and found.__module__ == module and module in _DATA_CLASSES
        if not (plain or data):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a table of contents")
        return found


def _map_saved(path: Path, begin: int, length: int) -> Tensor:
    """The tensor that `torch.save` wrote at `begin`: a zip archive, its storage uncompressed."""
    with open(path, "rb", buffering=0) as file:
        window: Any = _Window(file, begin, length)
        described = torch.load(window, map_location="meta", weights_only=True)
        with ZipFile(window) as archive:
            (record,) = (r for r in archive.infolist() if r.filename.endswith("/data/0"))
        # Behind the record's own header, whose last two fields are the lengths of what follows it.
        window.seek(record.header_offset + 26)
        name, extra = struct.unpack("<HH", window.read(4))
    data = begin + record.header_offset + 30 + name + extra
    elements = record.file_size // described.element_size()
    storage = map_tensor(path, data, (elements,), described.dtype)
    return storage.as_strided(described.shape, described.stride(), described.storage_offset())


def _narrowed(tensor: Tensor, offsets: Sequence[int], lengths: Sequence[int]) -> Tensor:
    for axis, (start, size) in enumerate(zip(offsets, lengths, strict=True)):
        tensor = tensor.narrow(axis, start, size)
    return tensor


class _Window(io.RawIOBase):
    """The `length` bytes of an unbuffered file from `begin`, as a file of their own."""

    def __init__(self, file: io.RawIOBase | Any, begin: int, length: int) -> None:
        self._file = file
        self._begin = begin
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._at)]
        self._file.seek(self._begin + self._at)
        # The system reads at most 2 GiB at a time.
        done = 0
        while done < len(view):
            count = self._file.readinto(view[done:])
            if not count:
                break
            done += count
        self._at += done
        return done
