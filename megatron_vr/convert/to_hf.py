"""From a Megatron checkpoint to a Hugging Face folder, tensor by tensor, without Megatron."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from megatron_vr.convert.arena import Arena
from megatron_vr.convert.dist_reader import CONTENTS, check_finished
from megatron_vr.convert.hf_reader import INDEX, SINGLE
from megatron_vr.convert.hf_writer import (
    SHARD_BYTES,
    copy_companions,
    state_dtype,
    write_shard,
)
from megatron_vr.convert.maps import parameters, source_shapes, weight_map
from megatron_vr.convert.megatron_weights import MegatronWeights
from megatron_vr.convert.to_megatron import COMPANIONS, FORMAT
from megatron_vr.convert.units import Advance, Item, Parameter, Unit, group
from megatron_vr.convert.work import Done, carry_out
from megatron_vr.errors import CheckpointError, SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def convert_to_hf(
    checkpoint: str | Path,
    destination: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    processes: int | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Done:
    """Write the model of a torch_dist checkpoint, saved at any layout, as a Hugging Face folder.

    `base` is the Hugging Face folder the model began as: its configuration, tokenizer, chat
    template and licence are copied. A checkpoint made by `convert_to_megatron` has them itself
    (None). `dtype` is float32, bfloat16 or float16; None keeps the stored precision. Peak memory of
    each process is about twice the largest tensor. Raises CheckpointError when the checkpoint is
    damaged or not of the base's architecture, or the destination is not vacant.
    """
    if dtype is not None and dtype not in DTYPES:
        raise SettingsError(f"dtype={dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
    folder = Path(checkpoint).absolute()
    check_finished(folder)
    origin = origin_of(folder, base)
    architecture = read_architecture(origin)
    weights = MegatronWeights(folder, architecture)
    stored = _stored(weights)
    dtypes = {key: DTYPES[dtype] if dtype else found for key, found in stored.items()}
    conversion = ToHF(folder, origin, architecture, dtypes, shard_bytes)
    return carry_out(conversion, destination, processes)


def origin_of(checkpoint: Path, base: str | Path | None) -> Path:
    """The Hugging Face folder with a checkpoint's configuration and side files: `base`, or what the
    checkpoint carries. Raises CheckpointError without either."""
    if base is not None:
        return Path(base).absolute()
    carried = checkpoint / COMPANIONS
    if not carried.is_dir():
        raise CheckpointError(
            f"{checkpoint} has no {COMPANIONS}/ folder with config.json and tokenizer; name the "
            "Hugging Face folder that the model began as (--base)."
        )
    return carried


def _stored(weights: MegatronWeights) -> dict[str, torch.dtype]:
    """Key → precision. Raises CheckpointError where layers differ, or for one that is not
    written."""
    found: dict[str, torch.dtype] = {}
    for weight, index in parameters(weights.architecture):
        dtype = weights.parameter_dtype(weight, index)
        if dtype not in DTYPES.values() or found.setdefault(weight.megatron, dtype) != dtype:
            raise CheckpointError(
                f"{weights.folder}: {weight.megatron} {list(index)} is stored as {dtype}; all "
                f"layers must be one of {', '.join(DTYPES)}."
            )
    return found


@dataclass(frozen=True)
class ToHF:
    """One such conversion; `dtypes` are the precisions to write, by Megatron key."""

    checkpoint: Path
    base: Path
    architecture: Architecture
    dtypes: Mapping[str, torch.dtype]
    shard_bytes: int

    @property
    def units(self) -> list[Unit]:
        """The shards, as Transformers names them."""
        shards = group(self._items(), self.shard_bytes)
        return [
            Unit(
                SINGLE if len(shards) == 1 else _shard_name(number, len(shards)),
                sum(item.nbytes for item in items),
                tuple(item.parameter for item in items),
            )
            for number, items in enumerate(shards, start=1)
        ]

    def identity(self) -> dict[str, Any]:
        """What the files follow from."""
        contents = (self.checkpoint / CONTENTS).stat()
        return {
            "conversion": "to-hf",
            "format": FORMAT,
            "architecture": asdict(self.architecture),
            "source": str(self.checkpoint),
            "contents": [contents.st_size, contents.st_mtime_ns],
            "base": str(self.base),
            "dtypes": {key: str(dtype) for key, dtype in self.dtypes.items()},
            "shard_bytes": self.shard_bytes,
        }

    def make(self, unit: Unit, path: Path, advance: Advance) -> list[str]:
        """Write one shard; the names of its tensors."""
        rows = weight_map(self.architecture)
        arena = Arena()
        weights = MegatronWeights(self.checkpoint, self.architecture, arena)
        header = {
            name: (shape, self.dtypes[key])
            for key, index in unit.parameters
            for name, shape in source_shapes(rows[key], index, self.architecture).items()
        }

        def tensors() -> Iterator[torch.Tensor]:
            for key, index in unit.parameters:
                found = weights.tensors_of(rows[key], index)
                while found:
                    name = next(iter(found))
                    yield rounded(name, found.pop(name), self.dtypes[key])
                arena.reset()

        write_shard(path, header, tensors(), advance, sum(item.nbytes for item in self._items()))
        return list(header)

    def finish(self, folder: Path, made: Mapping[str, Any]) -> None:
        """Write the index, and the base's other files."""
        if len(made) > 1:
            shard_of = {name: shard for shard, names in made.items() for name in names}
            index = {
                "metadata": {"total_size": sum(unit.nbytes for unit in self.units)},
                "weight_map": dict(sorted(shard_of.items())),
            }
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        copy_companions(self.base, folder)
        state_dtype(folder, self.dtypes["embedding.word_embeddings.weight"])

    def _items(self) -> Iterator[Item]:
        for weight, index in parameters(self.architecture):
            shapes = source_shapes(weight, index, self.architecture).values()
            elements = sum(torch.Size(shape).numel() for shape in shapes)
            parameter: Parameter = (weight.megatron, index)
            yield Item(parameter, elements * self.dtypes[weight.megatron].itemsize)


def rounded(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor` in `dtype`. Raises CheckpointError where it has a value that `dtype` has not."""
    found = tensor.to(dtype)
    narrow = torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrow and not torch.equal(found.isfinite(), tensor.isfinite()):
        raise CheckpointError(f"{name} has values beyond the range of {dtype}; use bfloat16.")
    return found


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"
