"""Write a Hugging Face folder: safetensors a tensor at a time, and the files beside them."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_vr.convert.aside import check_vacant
from megatron_vr.convert.page_cache import WriteBehind
from megatron_vr.convert.units import Advance
from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder

SHARD_BYTES = 5 * 1024**3

_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}

# Everything beside the weights is carried over, but for what is not the model's or is code.
_LEFT = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth"),
    *("*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ckpt", "*.npz", "*.distcp"),
    *("*.py", "*.pyc", "*.pkl", ".*", "README*", "trainer_state.json"),
)
_FOLDERS = ("additional_chat_templates",)


@contextmanager
def new_folder(destination: str | Path) -> Iterator[Path]:
    """A temporary sibling of `destination` that becomes it when the block ends without an error.

    Raises CheckpointError when `destination` exists and is not an empty folder.
    """
    final = Path(destination)
    check_vacant(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.writing"
    temporary.mkdir()
    try:
        yield temporary
        if final.exists():
            final.rmdir()
        publish_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_companions(source: Path, folder: Path) -> None:
    """Copy configuration, tokenizer, chat templates, licence and what else is no weight, no code
    and no model card; links become files. What `folder` has already stays."""
    for path in companions(source):
        if not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(
                source / name, folder / name, dirs_exist_ok=True, copy_function=shutil.copyfile
            )


def companions(folder: Path) -> list[Path]:
    """The files of a Hugging Face folder that are no weights, no code and no model card."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not any(fnmatch(path.name, pattern) for pattern in _LEFT)
    )


def state_dtype(folder: Path, dtype: torch.dtype) -> None:
    """Make the `config.json` in `folder` state `dtype`; one that does stays as it is."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    name = str(dtype).removeprefix("torch.")
    if {config.get("dtype", name), config.get("torch_dtype", name)} == {name}:
        return
    # Both names: Transformers 5 writes `dtype`, older readers know `torch_dtype` only.
    config.update(dtype=name, torch_dtype=name)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_shard(
    path: Path,
    header: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    tensors: Iterable[Tensor],
    advance: Advance,
    total: int,
) -> None:
    """Write a safetensors file of the tensors that `header` names, with their shapes and
    precisions; `tensors` come in its order and are written one at a time. `total` is the size of
    all shards together.

    The format: the length of the header in 8 bytes, the header as JSON, the tensors' bytes. Raises
    CheckpointError for a tensor that is not as announced.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, dtype) in header.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        entries[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        behind = WriteBehind(file.fileno(), total)
        _write(file, len(text).to_bytes(8, "little") + text)
        coming = iter(tensors)
        for name, announced in header.items():
            tensor = next(coming)
            if (tuple(tensor.shape), tensor.dtype) != announced:
                raise CheckpointError(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}.")
            _write(file, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            behind.wrote(tensor.nbytes)
            advance(tensor.nbytes)
            del tensor  # before the next one needs room


def _write(file: Any, content: bytes | memoryview) -> None:
    # The system writes at most 2 GiB at a time.
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
