"""The weights of a Hugging Face folder: safetensors, memory-mapped, checked before use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_vr.convert.maps import expected_tensors
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")

# Some folders of tied models store the embedding a second time under this name.
_TIED_COPY = ("lm_head.weight", "model.embed_tokens.weight")


class HFWeights:
    """The tensors of one folder, by name; a context manager that holds the files open.

    Tensors are read from the memory map when they are asked for, one at a time.
    """

    def __init__(self, folder: str | Path) -> None:
        """Opens every shard. Raises CheckpointError for a missing, truncated or pickled shard."""
        self.folder = Path(folder)
        self._stack = ExitStack()
        try:
            self._files = self._open()
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> HFWeights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def names(self) -> set[str]:
        """The names of all tensors."""
        return set(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._files[name].get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor, in the precision it is stored in."""
        found: Tensor = self._files[name].get_tensor(name)
        return found

    def _open(self) -> dict[str, Any]:
        index = self.folder / INDEX
        if index.exists():
            return self._open_shards(_read_index(index))
        single = self.folder / SINGLE
        if single.exists():
            opened = self._open_file(single)
            return dict.fromkeys(opened.keys(), opened)
        for name in _PICKLES:
            if (self.folder / name).exists():
                raise CheckpointError(
                    f"{self.folder} holds pickled weights only ({name}), which are not read; "
                    "save the model as safetensors first."
                )
        raise CheckpointError(f"{self.folder} has neither {SINGLE} nor {INDEX}.")

    def _open_shards(self, shard_of: Mapping[str, str]) -> dict[str, Any]:
        opened = {shard: self._open_file(self.folder / shard) for shard in set(shard_of.values())}
        stored = {shard: set(file.keys()) for shard, file in opened.items()}
        for name, shard in shard_of.items():
            if name not in stored[shard]:
                raise CheckpointError(
                    f"{self.folder / INDEX} places tensor {name} in {shard}, which lacks it."
                )
        listed = set(shard_of)
        for shard, names in stored.items():
            if names - listed:
                raise CheckpointError(
                    f"{self.folder / shard} holds tensor {min(names - listed)}, which {INDEX} "
                    "does not list."
                )
        return {name: opened[shard] for name, shard in shard_of.items()}

    def _open_file(self, path: Path) -> Any:
        if not path.exists():
            raise CheckpointError(f"shard {path} is missing; copy or download the folder again.")
        try:
            return self._stack.enter_context(safe_open(path, framework="pt"))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it may be truncated: copy or download it again."
            ) from None


def _read_index(path: Path) -> dict[str, str]:
    try:
        shard_of = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise CheckpointError(f"{path} is not a safetensors index.") from None
    outside = [shard for shard in shard_of.values() if Path(shard).name != shard]
    if outside:
        raise CheckpointError(f"{path} names a shard outside its folder: {outside[0]}.")
    return dict(shard_of)


def check_tensors(weights: HFWeights, architecture: Architecture) -> None:
    """Raise CheckpointError unless the folder holds exactly the model's tensors, in their shapes.

    A tied model may store its embedding again as the output weight, if the two are equal.
    """
    expected = expected_tensors(architecture)
    names = weights.names()
    copy, original = _TIED_COPY
    if architecture.tied and copy in names:
        names.remove(copy)
        if original in names and not weights.tensor(copy).equal(weights.tensor(original)):
            raise CheckpointError(
                f"{weights.folder}: config.json ties the output weight to the embedding, but "
                f"{copy} differs from {original}."
            )
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
