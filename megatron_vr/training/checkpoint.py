"""Checkpoints to resume a training from: whole or not there.

`checkpoints/step-000123` is written as `step-000123.tmp` and renamed when every rank's files are
on the disk; older ones are deleted only then. Aside, a copy of the state is written by a thread
of each rank while the training goes on.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder, write_durably
from megatron_vr.training.save_strategy import DeferredSave, Write, shared_by
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
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _thread() -> ThreadPoolExecutor:
    """A thread that, where there are GPUs, knows this rank's."""
    if not torch.cuda.is_available():
        return ThreadPoolExecutor(1, "checkpoint")
    device = (torch.cuda.current_device(),)
    return ThreadPoolExecutor(1, "checkpoint", torch.cuda.set_device, device)


def _unfinished(final: Path) -> Path:
    return final.with_name(final.name + ".tmp")


@dataclass(frozen=True)
class Progress:
    """How far a training is: `step` steps done, in `skipped` of them nothing was updated."""

    step: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class Kept:
    """Which checkpoints stay: the `last` n, and those of steps that are multiples of `every`."""

    last: int
    every: int | None = None

    def superseded(self, steps: Sequence[int]) -> list[int]:
        """Of `steps`, ascending, those whose checkpoints go."""
        return [step for step in steps[: -self.last] if self.every is None or step % self.every]


class Checkpoints:
    """The checkpoints of one training in `folder`; every rank calls every method.

    `identity` (JSON) is what a checkpoint must agree with to be resumed from. With `aside` saves
    return before they are on the disk.
    """

    def __init__(
        self, folder: Path, kept: Kept, identity: Mapping[str, Any], *, aside: bool = False
    ) -> None:
        self.folder = folder
        self.kept = kept
        self.identity = identity
        self._aside = aside
        self._thread = _thread()
        self._pending: Future[None] | None = None

    @cached_property
    def _writer(self) -> DeferredSave:
        return DeferredSave(self._aside)

    @cached_property
    def _strategy(self) -> Any:
        """Kept between saves: it remembers which rank writes what."""
        replicas = parallel_state.get_data_parallel_group(with_context_parallel=True)
        return shared_by(self._writer, replicas)

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

    def save(self, progress: Progress, state: TrainingState) -> None:
        """Save the state at `progress`, once the save before is durable.

        On return it is durable on all ranks, or with `aside` on its way. Raises what the save
        before failed with.
        """
        self.settle()
        unfinished = _unfinished(self.path(progress.step))
        if dist.get_rank() == 0:
            for leftover in self.folder.glob("step-*.tmp"):
                shutil.rmtree(leftover)
            unfinished.mkdir(parents=True)
        dist.barrier()
        content = state.sharded() | asdict(progress) | {"world_size": dist.get_world_size()}
        dist_checkpointing.save(content, str(unfinished), self._strategy)
        self._pending = self._thread.submit(self._publish, self._writer.take(), progress.step)
        if not self._aside:
            self.settle()

    def settle(self) -> None:
        """Return when the last save is durable and published on all ranks."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            dist.barrier()

    def check_pending(self) -> None:
        """Raise what a save that is on its way has failed with; without waiting for it."""
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def close(self) -> None:
        """Let a save that is on its way come to its end, also where the training failed."""
        self._thread.shutdown(wait=True)
        if "_writer" in self.__dict__:
            self._writer.close()

    def _publish(self, write: Write, step: int) -> None:
        try:
            write()
            self._name(step)
        except (CheckpointException, OSError) as error:
            raise CheckpointError(
                f"{self.path(step)} could not be written ({type(error).__name__}: "
                f"{_first_line(error)}); the checkpoint before it is kept, and the same command "
                "goes on from there"
            ) from error

    def _name(self, step: int) -> None:
        """Give the written checkpoint its name, and let superseded ones go."""
        if dist.get_rank() != 0:
            return
        unfinished = _unfinished(self.path(step))
        _write_manifest(unfinished, step, self.identity)
        publish_folder(unfinished, self.path(step))
        for old in self.kept.superseded([_step(path) for path in _whole(self.folder)]):
            # Aside first: a kill must not leave half of one under its name. What cannot be
            # deleted now goes before the next save.
            discarded = self.folder / f"{self.path(old).name}.old.tmp"
            self.path(old).rename(discarded)
            shutil.rmtree(discarded, ignore_errors=True)

    def load(self, path: Path, state: TrainingState) -> Progress:
        """Set `state` to what the checked `path` holds; the progress behind it.

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
        return Progress(int(common["step"]), int(common["skipped"]))


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
