"""Read parts of tensors from a distributed checkpoint, in one process and without Megatron."""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Sequence
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

from megatron_vr.convert.arena import Arena, read_into
from megatron_vr.convert.mapped import map_tensor
from megatron_vr.convert.maps import Index
from megatron_vr.convert.shards import Read
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


Take = Callable[[tuple[int, ...], torch.dtype], Tensor]


class TensorCheckpoint:
    """The tensors of a torch_dist checkpoint folder, read a part at a time.

    `objects` are the names of what else it holds.
    """

    def __init__(self, folder: str | Path, arena: Arena | None = None) -> None:
        """Tensors are read into `arena`, or are maps of files where that is possible. Raises
        CheckpointError when `folder` is not such a checkpoint."""
        self._take: Take = arena.take if arena else _fresh
        self._read: Read = arena.read if arena else map_tensor
        self.folder = Path(folder)
        check_finished(self.folder)
        metadata = _read_contents(self.folder / CONTENTS)
        self._storage: dict[Any, Any] = metadata.storage_data
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

        self._chunks: dict[tuple[str, int], dict[tuple[int, ...], list[ChunkStorageMetadata]]] = {}
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
        items = create_read_items_for_chunk_list(key, self._near(key, block), [block])
        found = sum(item.lengths.numel() for item in items)
        if found != block.sizes.numel():
            raise CheckpointError(
                f"{self.folder}: {found} of {block.sizes.numel()} elements of {key} are stored."
            )
        if len(items) == 1:
            return self._piece(key, items[0], None)
        target = self._take(tuple(sizes), self.dtype(key))
        for item in items:
            place = _narrowed(target, item.dest_offsets, item.lengths)
            piece = self._piece(key, item, place)
            if piece is not place:
                place.copy_(piece)
        return target

    def _near(self, key: str, block: ChunkStorageMetadata) -> TensorStorageMetadata:
        """The tensor with the chunks that can have a part of `block`: where chunks are one thick
        along the first axes, as those of layers and experts are, only the ones at its place."""
        stored = self._tensors[key]
        thin = next((axis for axis, size in enumerate(block.sizes) if size != 1), 0)
        if (key, thin) not in self._chunks:
            places: dict[tuple[int, ...], list[ChunkStorageMetadata]] = {}
            even = all(max(chunk.sizes[:thin], default=1) == 1 for chunk in stored.chunks)
            for chunk in stored.chunks:
                places.setdefault(tuple(chunk.offsets[:thin]) if even else (), []).append(chunk)
            self._chunks[key, thin] = places
        places = self._chunks[key, thin]
        near = places[()] if () in places else places.get(tuple(block.offsets[:thin]), [])
        return TensorStorageMetadata(stored.properties, stored.size, near)

    def _piece(self, key: str, item: ReadItem, place: Tensor | None) -> Tensor:
        """What `item` asks of one stored piece: in `place` itself where it can be read there."""
        stored = self._storage[item.storage_index]
        path = self.folder / stored.relative_path
        if getattr(stored, "transform_descriptors", None):
            raise CheckpointError(f"{path} is compressed; save the checkpoint without extensions.")
        try:
            piece, data = _find_saved(path, stored.offset, stored.length)
            whole = piece.is_contiguous() and item.lengths == piece.shape
            if place is not None and place.is_contiguous() and whole:
                read_into(place, path, data)
                return place
            count = piece.untyped_storage().nbytes() // piece.element_size()
            storage = self._read(path, data, (count,), piece.dtype)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, BadZipFile) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{path}: {key} cannot be read ({reason}).") from error
        # Offsets count from the begin of the memory, of which `storage` may be a stretch.
        offset = storage.storage_offset() + piece.storage_offset()
        strided = storage.as_strided(piece.shape, piece.stride(), offset)
        return _narrowed(strided, item.storage_offsets, item.lengths)


def _fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _read_contents(path: Path) -> Metadata:
    try:
        with open(path, "rb") as file:
            found = _Contents(file).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError) as error:
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


def _find_saved(path: Path, begin: int, length: int) -> tuple[Tensor, int]:
    """The tensor that `torch.save` wrote at `begin`, as one without content, and where its storage
    stands: uncompressed, in a zip archive."""
    with open(path, "rb", buffering=0) as file:
        window: Any = _Window(file, begin, length)
        described = torch.load(window, map_location="meta", weights_only=True)
        with ZipFile(window) as archive:
            (record,) = (r for r in archive.infolist() if r.filename.endswith("/data/0"))
        # Behind the record's own header, whose last two fields are the lengths of what follows it.
        window.seek(record.header_offset + 26)
        name, extra = struct.unpack("<HH", window.read(4))
    return described, begin + record.header_offset + 30 + name + extra


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
