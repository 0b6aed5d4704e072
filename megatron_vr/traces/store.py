"""A stage's folder: parts, the fingerprint of what made them, and a marker when all are there.

Invariants:
- a part file under its final name is whole and on the disk (written aside, synced, renamed);
- the done marker exists only after every part it names;
- parts made under one fingerprint are never mixed with parts of another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_vr.errors import DataError, StageError
from megatron_vr.traces.durable import sync_folder, write_durably
from megatron_vr.traces.fingerprint import Fingerprint, differences
from megatron_vr.traces.lock import locked

FINGERPRINT = "fingerprint.json"
DONE = "_DONE.json"
PROGRESS = "progress.json"  # how far it is, for `status`; of no weight for the results
_OF_NO_WEIGHT = {FINGERPRINT, f"{FINGERPRINT}.tmp", PROGRESS, f"{PROGRESS}.tmp"}
_CHECKS = "fp8-check"  # begins the names of what `--fp8-check` leaves before a training begins
# What a stage leaves where its folder has lost its fingerprint, or never got it.
_REMAINS = re.compile(
    rf"part-\d{{5,}}\.(parquet|journal|tmp)|{DONE}|({FINGERPRINT}|{DONE}|{PROGRESS})\.tmp|{PROGRESS}|\..*\.writing"
)


def count_parts(total: int, part_size: int) -> int:
    """How many parts `total` items make; an empty stage has one, empty part."""
    return max(1, -(-total // part_size))


def part_items(index: int, part_size: int, total: int) -> range:
    """Which of `total` items part `index` holds."""
    return range(index * part_size, min((index + 1) * part_size, total))


@dataclass(frozen=True)
class StageFolder:
    """One stage's results under `path`, made under `fingerprint`."""

    path: Path
    fingerprint: Fingerprint

    @property
    def done(self) -> bool:
        """Whether the stage finished under this very fingerprint."""
        return (
            (self.path / DONE).exists()
            and self._recorded() == self.fingerprint.content
            and not self.missing(self._marker()["parts"])
        )

    def open(self, *, start_over: bool = False) -> None:
        """Make the folder ready to write into, keeping finished parts of the same fingerprint.

        Raises StageError naming what changed when the folder was made under other settings;
        with `start_over` its content is deleted instead. Remains without a fingerprint are deleted,
        anything else without one is not ours: StageError, also with `start_over`.
        """
        if start_over and self._stale():
            self._discard()
        self.check()
        recorded = self._recorded()
        if recorded is None:
            self._discard()
            self.path.mkdir(parents=True, exist_ok=True)
        if recorded != self.fingerprint.content:
            write_durably(self.path / FINGERPRINT, _as_json(self.fingerprint.content))
        for leftover in self.path.glob("*.tmp"):
            leftover.unlink()
        for journal in self.path.glob("part-*.journal"):
            # A kill between a part and the end of its journal leaves both.
            if journal.with_suffix(".parquet").exists():
                journal.unlink()
        for leftover in self.path.glob(".*.writing"):
            shutil.rmtree(leftover)

    def _discard(self) -> None:
        """Delete the folder; a kill in the middle leaves nothing under its name."""
        if self._names():
            self.path.rename(self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}.discarded"))
        for discarded in self.path.parent.glob(f".{self.path.name}.*.discarded"):
            shutil.rmtree(discarded)

    def check(self) -> None:
        """Raise StageError, naming what changed, if the folder was made under other settings.

        Also if something is there that no stage made, or the fingerprint is damaged.
        """
        recorded = self._recorded()
        if recorded is not None and self._stale():
            raise StageError(self._changed(recorded))
        foreign = sorted(name for name in self._names() if not _REMAINS.fullmatch(name))
        if recorded is None and foreign:
            raise StageError(
                f"{self.path} has no {FINGERPRINT} and holds what no stage made: "
                f"{', '.join(foreign[:5])}. Move it away, or use another folder"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Let no other process, nor another block of this one, work in the folder meanwhile.

        The lock is a file beside the folder, which stays there. Raises StageError as `locked` does.
        """
        file = self.path.with_name(f".{self.path.name}.lock")
        fix = "wait for its end, stop it, or use another folder"
        with locked(file, f"another process works in {self.path}; {fix}"):
            yield

    def part(self, index: int) -> Path:
        """Final path of part `index`."""
        return self.path / f"part-{index:05d}.parquet"

    def missing(self, parts: int) -> list[int]:
        """The parts of 0..parts-1 that are still to be made."""
        return [index for index in range(parts) if not self.part(index).exists()]

    def write_part(self, index: int, table: pa.Table) -> None:
        """Publish part `index`, durably and all at once."""
        final = self.part(index)
        aside = final.with_suffix(".tmp")
        try:
            pq.write_table(table, aside)
            with open(aside, "rb+") as file:
                os.fsync(file.fileno())
            aside.rename(final)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(self.path)

    def finish(self, parts: int, summary: Mapping[str, Any] | None = None) -> None:
        """Publish the done marker with `summary`. Raises StageError if a part is missing."""
        missing = self.missing(parts)
        if missing:
            raise StageError(f"{self.path}: parts {missing[:5]} are missing; run the stage again")
        content = {"parts": parts, "summary": dict(summary or {})}
        write_durably(self.path / DONE, _as_json(content))

    def summary(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(self._marker()["summary"])

    def read(self, schema: pa.Schema, columns: Iterable[str] | None = None) -> pa.Table:
        """All parts as one table, in order. Raises DataError for a missing or damaged part."""
        return self.read_parts(self._marker()["parts"], schema, columns)

    def read_parts(
        self, parts: int, schema: pa.Schema, columns: Iterable[str] | None = None
    ) -> pa.Table:
        """The first `parts` parts as one table, before the stage is published as done."""
        names = schema.names if columns is None else list(columns)
        kept = pa.schema([schema.field(name) for name in names])
        tables = [self.read_part(index, kept) for index in range(parts)]
        return pa.concat_tables([kept.empty_table(), *tables])

    def read_part(self, index: int, schema: pa.Schema) -> pa.Table:
        """The columns of `schema` of part `index`. Raises DataError if it cannot be read."""
        path = self.part(index)
        try:
            return pq.read_table(path, columns=schema.names).cast(schema)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{path} cannot be read ({error}); delete it and run its stage again"
            ) from None

    def _marker(self) -> dict[str, Any]:
        file = self.path / DONE
        marker = _content(file, "delete it and run the stage again: it keeps what is finished")
        if marker is None:
            raise StageError(f"{self.path} is not finished; run its stage first")
        return marker

    def _stale(self) -> bool:
        """Whether other settings made something here; their fingerprint alone is nothing."""
        begun = {name for name in self._names() - _OF_NO_WEIGHT if not name.startswith(_CHECKS)}
        return bool(begun) and self._recorded() not in (None, self.fingerprint.content)

    def _recorded(self) -> dict[str, Any] | None:
        fix = f"delete the folder {self.path} and run its stage again"
        return _content(self.path / FINGERPRINT, fix)

    def _names(self) -> set[str]:
        """Everything in the folder."""
        if self.path.exists() and not self.path.is_dir():
            raise StageError(f"{self.path} is not a folder; move it away, or use another folder")
        return set(os.listdir(self.path)) if self.path.exists() else set()

    def _changed(self, recorded: Mapping[str, Any]) -> str:
        changes = "; ".join(differences(recorded, self.fingerprint.content))
        return (
            f"{self.path} was made under other settings: {changes}. "
            "Put them back, use another run.folder, or pass --start-over to make it anew"
        )


def _content(file: Path, fix: str) -> dict[str, Any] | None:
    """The JSON object in `file`, None without a file. Raises StageError, with the `fix`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StageError(f"{file} is damaged ({error}); {fix}") from None
    if not isinstance(content, dict):
        raise StageError(f"{file} is damaged (it is no JSON object); {fix}")
    return content


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
