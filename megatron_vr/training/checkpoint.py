"""Checkpoints to resume a training from: whole or not there.

`checkpoints/step-000123` is written as `step-000123.tmp` and renamed when every rank's files are
on the disk; older ones are deleted only then.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder, write_durably
from megatron_vr.training.save_strategy import save_strategy
from megatron_vr.training.state import TrainingState

NAME = re.compile(r"step-(\d{6,})")
MANIFEST = "training.json"

# What reading a damaged or foreign file raises, in torch, Megatron or pickle.
_UNREADABLE = (
    CheckpointException,
    CheckpointingException,
    pickle.UnpicklingError,
    AssertionError,
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)


def newest_checkpoint(folder: Path) -> Path:
    """The whole checkpoint of the most steps in `folder`. Raises CheckpointError without one."""
    found = _whole(folder)
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint; run the training first")
    return found[-1]


def _whole(folder: Path) -> list[Path]:
    """Published checkpoints, fewest steps first."""
    names = {
        int(match[1]): path
        for path in folder.glob("step-*")
        if (match := NAME.fullmatch(path.name))
    }
    return [names[step] for step in sorted(names)]


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training in `folder`; every rank calls every method.

    `identity` (JSON) is what a checkpoint must agree with to be resumed from.
    """

    folder: Path
    keep_last: int
    identity: Mapping[str, Any]

    @cached_property
    def _strategy(self) -> Any:
        """Kept between saves: it remembers which rank writes what."""
        return save_strategy(parallel_state.get_data_parallel_group(with_context_parallel=True))

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is, or will be."""
        return self.folder / f"step-{step:06d}"

    def newest(self) -> Path | None:
        """The whole checkpoint of the most steps, if any."""
        found = _whole(self.folder)
        return found[-1] if found else None

    def check(self, path: Path) -> None:
        """Raise CheckpointError unless `path` is complete and of this very training."""
        manifest = _read_manifest(path)
        _check_files(path, manifest)
        _check_identity(path, manifest, self.identity)

    def save(self, step: int, state: TrainingState) -> None:
        """Publish the checkpoint after `step` steps; on return it is durable on all ranks."""
        final = self.path(step)
        aside = final.with_name(final.name + ".tmp")
        if dist.get_rank() == 0:
            for leftover in self.folder.glob("step-*.tmp"):
                shutil.rmtree(leftover)
            aside.mkdir(parents=True)
        dist.barrier()
        content = state.sharded() | {"step": step, "world_size": dist.get_world_size()}
        dist_checkpointing.save(content, str(aside), self._strategy)
        if dist.get_rank() == 0:
            _write_manifest(aside, step, self.identity)
            publish_folder(aside, final)
            for old in _whole(self.folder)[: -self.keep_last]:
                shutil.rmtree(old)
        dist.barrier()

    def load(self, path: Path, state: TrainingState) -> int:
        """Set `state` to what the checked `path` holds; the steps behind it.

        At the layout and world size it was saved with, the training continues bit for bit; at
        another one up to rounding. Raises CheckpointError where it is unreadable or of another
        model.
        """
        try:
            common = dist_checkpointing.load_common_state_dict(str(path))
            same_world = common["world_size"] == dist.get_world_size()
            content = state.sharded(loading=True, random=same_world)
            state.restore(dist_checkpointing.load(content, str(path)))
        except _UNREADABLE as error:
            raise CheckpointError(
                f"{path} cannot be loaded ({type(error).__name__}: {_first_line(error)}); "
                "delete it to resume from an earlier checkpoint, or start over"
            ) from error
        return int(common["step"])


def _write_manifest(folder: Path, step: int, identity: Mapping[str, Any]) -> None:
    sizes = {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    content = {"step": step, "training": dict(identity), "files": sizes}
    write_durably(folder / MANIFEST, json.dumps(content, indent=1) + "\n")


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a checkpoint of a training: {MANIFEST} cannot be read ({error})"
        ) from error


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    for name, size in manifest["files"].items():
        file = folder / name
        found = file.stat().st_size if file.exists() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes instead of {size}"
            raise CheckpointError(
                f"{file} {state}; delete {folder.name} to resume from an earlier checkpoint, "
                "or start over"
            )


def _check_identity(folder: Path, manifest: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    saved = manifest["training"]
    for key, value in identity.items():
        if saved.get(key) != value:
            raise CheckpointError(
                f"{folder} is of another training: its {key} is {saved.get(key)}, not {value}; "
                "use another folder or start over"
            )


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return (str(error).splitlines() or [""])[0]
