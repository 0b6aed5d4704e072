"""A folder that is written beside its final place and survives a kill: finished files stay.

`.NAME.converting/` holds the files, and in `state/` what they are made from and the result of each
finished one. The same conversion started again goes on there; another one begins anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.errors import CheckpointError
from megatron_vr.traces.durable import publish_folder, write_durably

_STATE = "state"
_IDENTITY = "conversion.json"


def check_vacant(final: Path) -> None:
    """Raise CheckpointError when `final` exists and is not an empty folder."""
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(
            f"{final} exists and is not empty; remove it or write to another folder."
        )


@dataclass(frozen=True)
class Aside:
    """The folder that becomes `final`."""

    folder: Path
    final: Path

    def results(self) -> dict[str, Any]:
        """The results of the files that are finished, by name."""
        return {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted((self.folder / _STATE).glob("*.json"))
            if path.name != _IDENTITY
        }

    def finished(self, name: str, result: Any) -> None:
        """Record that file `name`, durable on the disk, is whole."""
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
        except Exception:
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


def _keep_only(folder: Path, identity: dict[str, Any]) -> None:
    """Empty the folder unless it holds files of this very conversion."""
    state = folder / _STATE
    recorded = state / _IDENTITY
    if recorded.exists() and json.loads(recorded.read_text(encoding="utf-8")) == identity:
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    state.mkdir()
    write_durably(recorded, json.dumps(identity, indent=1))
