"""Read parts of tensors from a distributed checkpoint, in one process and without Megatron."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from megatron_vr.errors import CheckpointError


class TensorCheckpoint:
    """The tensors of a torch_dist checkpoint folder, read a part at a time."""

    def __init__(self, folder: str | Path) -> None:
        """Raises CheckpointError when `folder` is not such a checkpoint."""
        self.folder = Path(folder)
        if not (self.folder / ".metadata").is_file():
            raise CheckpointError(
                f"{self.folder} is not a finished Megatron checkpoint: it has no .metadata file."
            )
        self._reader = FileSystemReader(str(self.folder))
        metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors = {
            key: stored
            for key, stored in metadata.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata)
        }

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def keys(self) -> set[str]:
        """The keys of all tensors, those of the optimizer among them."""
        return set(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """The whole tensor's shape."""
        return tuple(self._tensors[key].size)

    def entry(self, key: str, index: Sequence[int]) -> Tensor:
        """What stands at `index` of the first axes: one layer (and expert) of a parameter."""
        shape = self.shape(key)[len(index) :]
        block = self.part(key, [*index, *[0] * len(shape)], (*[1] * len(index), *shape))
        return block.reshape(shape)

    def part(self, key: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        """The block of `sizes` that starts at `offsets`, in the stored precision.

        Raises CheckpointError when the stored pieces do not cover it or a file is damaged.
        """
        stored = self._tensors[key]
        block = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
        items = create_read_items_for_chunk_list(key, stored, [block])
        found = sum(item.lengths.numel() for item in items)
        if found != block.sizes.numel():
            raise CheckpointError(
                f"{self.folder}: {found} of {block.sizes.numel()} elements of {key} are stored."
            )
        target = torch.empty(block.sizes, dtype=stored.properties.dtype)
        try:
            self._reader.read_data(LoadPlan(items), _IntoTensor(target)).wait()
        except (OSError, EOFError, RuntimeError) as error:
            raise CheckpointError(f"{self.folder}: {key} cannot be read ({error}).") from error
        return target


class _IntoTensor(LoadPlanner):
    """Tells the reader where in `target` each piece belongs; all else it does not need."""

    def __init__(self, target: Tensor) -> None:
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part = self._target
        for axis, (start, size) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            part = part.narrow(axis, start, size)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Pieces are copied into place as they are read."""

    def set_up_planner(
        self,
        state_dict: dict[str, object],
        metadata: Metadata | None = None,
        is_coordinator: bool = False,
    ) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError
