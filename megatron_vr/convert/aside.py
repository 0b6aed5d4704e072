"""A folder that is written beside its final place and survives a kill: finished files stay.

`.NAME.converting/` holds the files, and in `state/` what they are made from and the result of each
finished one. The same conversion started again goes on there; another one begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder, sync_folder, write_durably

_STATE = "state"
_IDENTITY = "conversion.json"


def check_vacant(final: Path) -> None:
    """Raise CheckpointError when `final` exists and is not an empty folder, or could not be
    replaced by one."""
    if final.is_symlink() or final.is_mount():
        raise CheckpointError(
            f"{final} is a link or a mount point, which a finished folder cannot take the place "
            "of; name a folder inside it."
        )
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(
            f"{final} exists and is not empty; remove it or write to another folder."
        )


class Resumable(CheckpointError):
    """A conversion cannot go on now; what it finished stays for the next run."""


@dataclass(frozen=True)
class Aside:
    """The folder that becomes `final`."""

    folder: Path
    final: Path

    def result(self, name: str, least: int) -> Any:
        """The result of file `name`, of at least `least` bytes; None where it is not finished."""
        recorded, file = self.folder / _STATE / f"{name}.json", self.folder / name
        if not recorded.exists() or not file.exists() or file.stat().st_size < least:
            return None
        return json.loads(recorded.read_text(encoding="utf-8"))

    def keep(self, names: Collection[str]) -> None:
        """Remove all files but `names`: what a killed run began after its last unit."""
        for path in self.folder.iterdir():
            if path.name != _STATE and path.name not in names:
                _remove(path)

    def finished(self, name: str, result: Any) -> None:
        """Record that file `name`, whose content is durable, is whole."""
        sync_folder(self.folder)
        write_durably(self.folder / _STATE / f"{name}.json", json.dumps(result))

    def publish(self) -> None:
        """Give the folder its final name."""
        shutil.rmtree(self.folder / _STATE)
        if self.final.exists():
            self.final.rmdir()
        publish_folder(self.folder, self.final)


@contextmanager
def open_aside(final: Path, identity: Mapping[str, Any]) -> Iterator[Aside]:
    """The folder beside `final`, with what a killed run of the same conversion left there.

    An error removes it; a kill or an interrupt leaves it to the next run. Raises CheckpointError
    when `final` is not vacant, or another process is writing it.
    """
    check_vacant(final)
    folder = final.parent / f".{final.name}.converting"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        _keep_only(folder, json.loads(json.dumps(identity)))
        try:
            yield Aside(folder, final)
        except Exception as error:
            finished = len(list((folder / _STATE).glob("*.json"))) > 1
            if not (isinstance(error, Resumable) and finished):
                shutil.rmtree(folder, ignore_errors=True)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The lock is the folder's own, and goes with the process."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"another process is writing {folder}; wait for it, or end it and try again."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _keep_only(folder: Path, identity: dict[str, Any]) -> None:
    """Empty the folder unless it holds files of this very conversion."""
    state = folder / _STATE
    recorded = state / _IDENTITY
    if recorded.exists() and json.loads(recorded.read_text(encoding="utf-8")) == identity:
        return
    # First what says that the rest is finished.
    for path in sorted(folder.iterdir(), key=lambda path: path.name != _STATE):
        _remove(path)
    state.mkdir()
    write_durably(recorded, json.dumps(identity, indent=1))
