"""The weights of a Hugging Face folder: memory-mapped, checked before use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from megatron_vr.convert.mapped import map_tensor
from megatron_vr.convert.maps import expected_tensors
from megatron_vr.convert.shards import Read, Shard, open_shard
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED_INDEX = "pytorch_model.bin.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_OF_TRAINING = ("training_args", "optimizer", "scheduler", "scaler")

# Some folders of tied models store the embedding a second time under this name.
_TIED_COPY = ("lm_head.weight", "model.embed_tokens.weight")


# Old Llama folders store what is computed from config.json; Transformers does not read it.
_COMPUTED = ".rotary_emb.inv_freq"


class Tensors(Protocol):
    """The tensors of a model under their Hugging Face names, wherever they are stored."""

    folder: Path

    def names(self) -> set[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """The precision a tensor is stored in, without reading it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the precision it is stored in."""
        ...

    def release(self) -> None:
        """Give back the memory of tensors read so far that nothing refers to."""
        ...


class HFWeights:
    """The tensors of one folder, by name (`Tensors`).

    Tensors are what `read` brings in: maps, by default, read when they are used. Pickled weights
    are read only with `allow_pickle`, and then nothing but tensors is unpickled.
    """

    def __init__(
        self, folder: str | Path, *, allow_pickle: bool = False, read: Read = map_tensor
    ) -> None:
        """Opens every shard. Raises CheckpointError for a missing or truncated shard, an index
        that does not match its shards, or pickled weights without `allow_pickle`."""
        self.folder = Path(folder)
        self._read = read
        self._shards = self._open(allow_pickle)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return sorted({shard.path for shard in self._shards.values()})

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._shards)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._shards[name].shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """The precision a tensor is stored in: float32, bfloat16 or float16, others are errors."""
        return self._shards[name].dtype(name)

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the precision it is stored in."""
        return self._shards[name].tensor(name)

    def release(self) -> None:
        """Give back the memory of tensors read so far that nothing refers to."""
        for shard in set(self._shards.values()):
            shard.release()

    def _open(self, allow_pickle: bool) -> dict[str, Shard]:
        if (self.folder / INDEX).exists():
            return self._indexed(INDEX)
        if (self.folder / SINGLE).exists():
            return _by_name(open_shard(self.folder / SINGLE, self._read))
        pickles = [path for pattern in _PICKLES for path in sorted(self.folder.glob(pattern))]
        if not pickles:
            raise CheckpointError(f"{self.folder} has neither {SINGLE} nor {INDEX}.")
        if not allow_pickle:
            raise CheckpointError(
                f"{self.folder} holds pickled weights only ({pickles[0].name}); give "
                "--allow-pickle to read their tensors (nothing else is unpickled), or save the "
                "model as safetensors first."
            )
        if (self.folder / _PICKLED_INDEX).exists():
            return self._indexed(_PICKLED_INDEX)
        named = [path for path in pickles if path.name == "pytorch_model.bin"]
        weights = named or [path for path in pickles if path.stem not in _OF_TRAINING]
        if len(weights) != 1:
            raise CheckpointError(
                f"{self.folder} has {len(weights)} pickled files and no {_PICKLED_INDEX} that says "
                "which tensor is in which."
            )
        return _by_name(open_shard(weights[0]))

    def _indexed(self, index: str) -> dict[str, Shard]:
        shard_of = _read_index(self.folder / index)
        opened = {
            name: open_shard(self.folder / name, self._read)
            for name in sorted(set(shard_of.values()))
        }
        for name, file in shard_of.items():
            if name not in opened[file].names():
                raise CheckpointError(
                    f"{self.folder / index} places tensor {name} in {file}, which lacks it."
                )
        for file, shard in opened.items():
            stray = sorted(name for name in shard.names() if shard_of.get(name) != file)
            if stray:
                verb = (
                    f"places in {shard_of[stray[0]]}" if stray[0] in shard_of else "does not list"
                )
                raise CheckpointError(
                    f"{self.folder / file} holds tensor {stray[0]}, which {index} {verb}."
                )
        return {name: opened[file] for name, file in shard_of.items()}


def _by_name(shard: Shard) -> dict[str, Shard]:
    return dict.fromkeys(shard.names(), shard)


def _read_index(path: Path) -> dict[str, str]:
    try:
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not a safetensors index.") from None
    outside = [shard for shard in shard_of.values() if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{path} names a shard outside its folder: {outside[0]}.")
    return dict(shard_of)


def redundant(name: str) -> bool:
    """Whether a folder that has passed `check_tensors` may have this tensor beyond the model's: it
    is computed, or the copy of a tied embedding."""
    return name.endswith(_COMPUTED) or name == _TIED_COPY[0]


def check_tensors(weights: Tensors, architecture: Architecture) -> None:
    """Raise CheckpointError unless the folder holds exactly the model's tensors, in their shapes.

    A tied model may store its embedding again as the output weight, if the two are equal.
    """
    expected = expected_tensors(architecture)
    names = {name for name in weights.names() if not name.endswith(_COMPUTED)}
    copy, original = _TIED_COPY
    if architecture.tied and copy in names:
        names.remove(copy)
        if original in names and not weights.tensor(copy).equal(weights.tensor(original)):
            raise CheckpointError(
                f"{weights.folder}: config.json ties the output weight to the embedding, but "
                f"{copy} differs from {original}."
            )
        weights.release()
    missing, extra = set(expected) - names, names - set(expected)
    if missing:
        raise CheckpointError(_listed(weights.folder, "lacks", missing, architecture))
    if extra:
        raise CheckpointError(_listed(weights.folder, "has unknown", extra, architecture))
    for name, shape in expected.items():
        if weights.shape(name) != shape:
            raise CheckpointError(
                f"{weights.folder}: tensor {name} has shape {weights.shape(name)}, but "
                f"config.json asks for {shape}."
            )


def _listed(folder: Path, verb: str, names: set[str], architecture: Architecture) -> str:
    shown = ", ".join(sorted(names)[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{folder} {verb} tensors for a {architecture.family} model: {shown}{more}."
