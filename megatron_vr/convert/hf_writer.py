"""Write a Hugging Face folder: safetensors, in shards where it is large, published by a rename."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from megatron_vr.convert.hf_reader import INDEX, SINGLE
from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder

SHARD_BYTES = 5 * 1024**3

# What a released model carries beside its weights.
_COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
)


@contextmanager
def new_folder(destination: str | Path) -> Iterator[Path]:
    """A temporary sibling of `destination` that becomes it when the block ends without an error.

    Raises CheckpointError when `destination` exists and is not an empty folder.
    """
    final = Path(destination)
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(
            f"{final} exists and is not empty; remove it or write to another folder."
        )
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
    """Copy configuration, tokenizer, chat template and licence; links become files."""
    for pattern in _COMPANIONS:
        for path in sorted(source.glob(pattern)):
            target = folder / path.name
            if path.is_file() and not target.exists():
                shutil.copyfile(path, target)


def set_config(folder: Path, **fields: Any) -> None:
    """Change fields of the `config.json` in `folder`, keeping the rest and their order."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(fields)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_tensors(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors to one file, or to shards of about `shard_bytes` with an index.

    No more than one shard is in memory: a shard is written when the next tensor would overfill it.
    """
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total = pending_bytes = 0

    def flush() -> None:
        shards.append(list(pending))
        save_file(pending, folder / _pending_name(len(shards)), metadata={"format": "pt"})
        pending.clear()

    for name, tensor in tensors:
        if pending and pending_bytes + tensor.nbytes > shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = tensor.contiguous()
        pending_bytes += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name_shards(folder, shards, total)


def _pending_name(number: int) -> str:
    return f"shard-{number}.safetensors"


def _name_shards(folder: Path, shards: list[list[str]], total: int) -> None:
    """Shards carry their count in their names, which is known at the end only."""
    if len(shards) == 1:
        os.replace(folder / _pending_name(1), folder / SINGLE)
        return
    shard_of = {}
    for number, names in enumerate(shards, start=1):
        final = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.replace(folder / _pending_name(number), folder / final)
        shard_of.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(shard_of.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
