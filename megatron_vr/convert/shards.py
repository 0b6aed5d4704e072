"""One file of weights, read a tensor at a time through a memory map."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_vr.convert.mapped import map_tensor
from megatron_vr.errors import CheckpointError

# Pages that were read stay with the process until the map is closed, so `release` closes it.
MAPPED = 2**26

_CONVERTED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_READ = _CONVERTED | {"F8_E4M3": torch.float8_e4m3fn}


# Path, first byte, shape and precision to a tensor.
Read = Callable[[Path, int, tuple[int, ...], torch.dtype], Tensor]


class Shard(Protocol):
    """The tensors of one file."""

    path: Path

    def names(self) -> set[str]:
        """The names of its tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, without reading it."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's precision, without reading it."""
        ...

    def tensor(self, name: str) -> Tensor:
        """A tensor."""
        ...

    def release(self) -> None:
        """Give back the pages read so far, once no tensor refers to them."""
        ...


def open_shard(path: Path, read: Read = map_tensor) -> Shard:
    """The shard `path`, by its ending; `read` brings in a stretch of a safetensors file.

    Raises CheckpointError where it cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"shard {path} is missing; copy or download the folder again.")
    return SafetensorsShard(path, read) if path.suffix == ".safetensors" else PickledShard(path)


class SafetensorsShard:
    """A safetensors file: the length of its header in 8 bytes, the header as JSON, the tensors."""

    def __init__(self, path: Path, read: Read) -> None:
        """Raises CheckpointError when the file is truncated or not of this format."""
        self.path = path
        self._read = read
        try:
            with safe_open(path, framework="pt"):
                pass  # it checks the header against the file
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); it may be truncated: copy or download it again."
            ) from None
        header.pop("__metadata__", None)
        self._header = header
        self._data = 8 + length

    def names(self) -> set[str]:
        """The names of its tensors."""
        return set(self._header)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._header[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's precision. Raises CheckpointError for one that is not converted."""
        stored = self._header[name]["dtype"]
        if stored not in _CONVERTED:
            raise CheckpointError(
                f"{self.path}: tensor {name} is stored as {stored}; only float32, bfloat16 and "
                "float16 are converted. Take the folder of the model before it was quantised."
            )
        return _CONVERTED[stored]

    def tensor(self, name: str) -> Tensor:
        """A tensor; its memory is for `read` to give and take."""
        stored = self._header[name]["dtype"]
        dtype = _READ[stored] if stored in _READ else self.dtype(name)
        begin = self._data + self._header[name]["data_offsets"][0]
        try:
            return self._read(self.path, begin, self.shape(name), dtype)
        except EOFError as error:
            raise CheckpointError(f"{error}; the source was changed meanwhile.") from None

    def release(self) -> None:
        """Nothing is kept."""


class PickledShard:
    """A file of `torch.save`: tensors by name. Nothing but tensors is unpickled."""

    def __init__(self, path: Path) -> None:
        """Raises CheckpointError when the file is damaged or holds anything but tensors."""
        self.path = path
        self._read = 0
        self._tensors: Mapping[str, Tensor] | None = self._open()
        self._names = set(self._tensors)

    def names(self) -> set[str]:
        """The names of its tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return tuple(self._opened()[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's precision. Raises CheckpointError for one that is not converted."""
        found = self._opened()[name].dtype
        if found not in _CONVERTED.values():
            raise CheckpointError(f"{self.path}: tensor {name} is stored as {found}.")
        return found

    def tensor(self, name: str) -> Tensor:
        """A tensor; a view of the map."""
        found = self._opened()[name]
        self._read += found.nbytes
        return found

    def release(self) -> None:
        """Close the map where much of it was read; the next read opens it again."""
        if self._read > MAPPED:
            self._tensors, self._read = None, 0

    def _opened(self) -> Mapping[str, Tensor]:
        if self._tensors is None:
            self._tensors = self._open()
        return self._tensors

    def _open(self) -> Mapping[str, Tensor]:
        try:
            content = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise CheckpointError(
                f"{self.path} holds more than tensors, and is not unpickled: that could run code. "
                "Save the model as safetensors where you trust it."
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{self.path} cannot be read ({reason}).") from None
        if not isinstance(content, Mapping) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        ):
            raise CheckpointError(f"{self.path} is not a mapping from names to tensors.")
        return content
