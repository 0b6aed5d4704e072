"""From a Hugging Face folder to a torch_dist checkpoint, tensor by tensor, without Megatron."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_vr.convert.arena import Arena
from megatron_vr.convert.dist_writer import Piece, unchecked_sums, write_contents, write_piece
from megatron_vr.convert.families import Weight
from megatron_vr.convert.hf_reader import HFWeights, check_tensors
from megatron_vr.convert.hf_writer import copy_companions
from megatron_vr.convert.maps import (
    Index,
    extra_states,
    parameter_shape,
    parameters,
    source_shapes,
    stack_shape,
    weight_map,
)
from megatron_vr.convert.page_cache import WriteBehind
from megatron_vr.convert.transforms import row_parts, take_rows
from megatron_vr.convert.units import Advance, Item, Unit, group
from megatron_vr.convert.work import Done, carry_out
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.parallel.layout import Layout, check_layout

FILE_BYTES = 2**30

# Raised whenever the same source would be written otherwise, which ends resuming of older ones.
FORMAT = 1

# Where a checkpoint keeps the Hugging Face files that are no weights.
COMPANIONS = "hf"


def convert_to_megatron(
    source: str | Path,
    destination: str | Path,
    layout: Layout,
    *,
    allow_pickle: bool = False,
    processes: int | None = None,
    file_bytes: int = FILE_BYTES,
) -> Done:
    """Write the Hugging Face folder `source` as the torch_dist checkpoint `destination`.

    The checkpoint can be loaded at any layout; at `layout` every rank reads only what is its own.
    Its vocabulary is padded for `layout`. Tensors keep their precision. Peak memory of each process
    is about twice the largest tensor. Raises CheckpointError when the source is damaged or not
    exactly the model of its config.json, or the destination is not vacant; SettingsError when the
    model cannot be split so.
    """
    folder = Path(source).absolute()
    architecture = read_architecture(folder)
    # How activations are split is nothing to a checkpoint.
    placed = replace(layout, sequence_parallel=layout.tensor > 1)
    check_layout(placed, architecture, layout.model_ranks)
    weights = HFWeights(folder, allow_pickle=allow_pickle)
    check_tensors(weights, architecture)
    dtypes = _dtypes(weights, architecture)
    conversion = ToMegatron(
        folder, architecture, layout, allow_pickle, dtypes, _files(weights), file_bytes
    )
    return carry_out(conversion, destination, processes)


@dataclass(frozen=True)
class ToMegatron:
    """One such conversion. `dtypes` are the precisions of the checkpoint's tensors, `files` the
    source's files."""

    source: Path
    architecture: Architecture
    layout: Layout
    allow_pickle: bool
    dtypes: Mapping[str, torch.dtype]
    files: tuple[str, ...]
    file_bytes: int

    @property
    def units(self) -> list[Unit]:
        """Files named after the pipeline rank whose parameters they hold."""
        units: list[Unit] = []
        for items in group(self._items(), self.file_bytes):
            rank = items[0].stage % self.layout.pipeline
            name = f"__{rank}_{sum(unit.name.startswith(f'__{rank}_') for unit in units)}.distcp"
            size = sum(item.nbytes for item in items)
            units.append(Unit(name, size, tuple(item.parameter for item in items)))
        return units

    def identity(self) -> dict[str, Any]:
        """What the files follow from."""
        return {
            "conversion": "to-megatron",
            "source": str(self.source),
            "format": FORMAT,
            "architecture": asdict(self.architecture),
            "files": [_stat(self.source / name) for name in self.files],
            "layout": [self.layout.tensor, self.layout.pipeline, self.layout.virtual_pipeline],
            "file_bytes": self.file_bytes,
        }

    def make(self, unit: Unit, path: Path, advance: Advance) -> list[Piece]:
        """Write the pieces of the unit's parameters; where each one stands."""
        rows = weight_map(self.architecture)
        arena, pieces = Arena(), []
        weights = HFWeights(self.source, allow_pickle=self.allow_pickle, read=arena.read)
        total = sum(item.nbytes for item in self._items())
        with open(path, "wb") as file, unchecked_sums():
            behind = WriteBehind(file.fileno(), total)
            for key, index in unit.parameters:
                parts = self._parts(weights, rows[key], index)
                for offsets, block in blocks(rows[key], parts, self.layout.tensor):
                    if not block.is_contiguous():
                        block = arena.take(tuple(block.shape), block.dtype).copy_(block)
                    at = [*index, *offsets]
                    stacked = block.reshape([1] * len(index) + list(block.shape))
                    pieces.append(write_piece(file, unit.name, key, at, stacked))
                    behind.wrote(block.nbytes)
                    advance(block.nbytes)
                del parts, block, stacked
                weights.release()
                arena.reset()
        return pieces

    def finish(self, folder: Path, made: Mapping[str, Any]) -> None:
        """Write the contents, and the source's other files as `hf/`."""
        pieces = [piece for unit in self.units for piece in made[unit.name]]
        whole = {
            key: ([*stack_shape(row, self.architecture), *self._shape(row)], self.dtypes[key])
            for key, row in weight_map(self.architecture).items()
        }
        write_contents(folder, pieces, whole, extra_states(self.architecture))
        (folder / COMPANIONS).mkdir(exist_ok=True)
        copy_companions(self.source, folder / COMPANIONS)

    def _shape(self, weight: Weight) -> tuple[int, ...]:
        rows = self.layout.padded_vocabulary(self.architecture.vocab_size)
        return parameter_shape(weight, self.architecture, rows)

    def _parts(self, weights: HFWeights, weight: Weight, index: Index) -> list[Tensor]:
        names = source_shapes(weight, index, self.architecture)
        sources = [weights.tensor(name) for name in names]
        return row_parts(weight.transform, sources, self.architecture, self._shape(weight)[0])

    def _items(self) -> Iterator[Item]:
        stages = self.layout.pipeline * (self.layout.virtual_pipeline or 1)
        for weight, index in parameters(self.architecture):
            if weight.layered:
                stage = index[0] * stages // self.architecture.layers
            else:
                stage = 0 if weight.megatron.startswith("embedding.") else stages - 1
            size = torch.Size(self._shape(weight)).numel() * self.dtypes[weight.megatron].itemsize
            yield Item((weight.megatron, index), size, stage)


def blocks(
    weight: Weight, parts: Sequence[Tensor], ranks: int
) -> Iterator[tuple[list[int], Tensor]]:
    """A parameter, given as its `row_parts`, as tensor-parallel ranks hold it: (offsets, block).

    A rank has a share of the gate and a share of the up projection, which are apart.
    """
    rows = sum(part.shape[0] for part in parts)
    rest = [0] * (parts[0].dim() - 1)
    if weight.split == "rows":
        count = 2 * ranks if weight.transform == "gate_up" else ranks
        for begin in range(0, rows, rows // count):
            yield [begin, *rest], take_rows(parts, begin, rows // count)
        return
    whole = take_rows(parts, 0, rows)
    count = ranks if weight.split == "columns" else 1
    for number, block in enumerate(whole.chunk(count, dim=-1)):
        yield [*[0] * len(rest), number * block.shape[-1]], block


def _files(weights: HFWeights) -> tuple[str, ...]:
    return (*(path.name for path in weights.files), "config.json")


def _stat(path: Path) -> list[Any]:
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def _dtypes(weights: HFWeights, architecture: Architecture) -> dict[str, torch.dtype]:
    """Of each key. Raises CheckpointError where its tensors have several, which a checkpoint has
    no room for."""
    first: dict[str, tuple[str, torch.dtype]] = {}
    for weight, index in parameters(architecture):
        for name in source_shapes(weight, index, architecture):
            found = weights.dtype(name)
            other, dtype = first.setdefault(weight.megatron, (name, found))
            if found != dtype:
                raise CheckpointError(
                    f"{weights.folder}: {name} is {found}, but {other} is {dtype}; a Megatron "
                    f"checkpoint stores both as {weight.megatron}, in one precision. Save the "
                    "model in one precision first."
                )
    return {key: dtype for key, (_, dtype) in first.items()}
