"""How far a stage is, in a small file of its folder, for `status` to read from anywhere."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megatron_vr.traces.store import PROGRESS

WRITE_SECONDS = 2.0
LAST_SECONDS = 5.0  # for the last writing: a file system may hang


@dataclass(frozen=True)
class StageProgress:
    """`done` of `total` (None: unknown) `unit`s of a stage, at the time `at`.

    `began_done` of them were there when the attempt at work began, at `began`; it worked on
    `tokens` since, with `made` of the units (others are other processes' work). Times are seconds
    since 1970.
    """

    done: int
    total: int | None
    unit: str
    began: float
    began_done: int
    at: float
    tokens: int = 0
    made: int = 0

    @property
    def per_second(self) -> float | None:
        """Units per second in this attempt; None before the first."""
        seconds, done = self.at - self.began, self.done - self.began_done
        return done / seconds if seconds > 0 and done > 0 else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all processes together, other ones' units taken to be as long as the own ones."""
        rate = self.per_second
        return self.tokens / self.made * rate if rate and self.made and self.tokens else None

    @property
    def seconds_left(self) -> float | None:
        """From `at` on, if it goes on like this."""
        rate = self.per_second
        if rate is None or self.total is None:
            return None
        return max(0, self.total - self.done) / rate


def read_progress(folder: Path) -> StageProgress | None:
    """What the stage in `folder` left last; None where it left nothing that can be read."""
    try:
        content = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        return StageProgress(**content)
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError):
        return None


class ProgressFile:
    """Keeps the file in `folder` up to date while the block runs, from a thread of its own.

    The work never waits for the file, and does not fail of it: a full disk fails what matters by
    itself. `say` is told once that `status` will not know. It is renamed into place, not synced.
    """

    def __init__(
        self, folder: Path, now: Callable[[], StageProgress], say: Callable[[str], None]
    ) -> None:
        self._file = folder / PROGRESS
        self._now = now
        self._say = say
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="progress", daemon=True)
        self._written: StageProgress | None = None
        self._faulty = False

    def __enter__(self) -> ProgressFile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(LAST_SECONDS)

    def _keep(self) -> None:
        self._write()
        while not self._ended.wait(WRITE_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        aside = self._file.with_name(self._file.name + ".tmp")
        try:
            now = self._now()
            # The time is that of the last change: how long nothing happened is to be seen.
            if self._written is not None and replace(now, at=self._written.at) == self._written:
                return
            aside.write_text(json.dumps(asdict(now)) + "\n", encoding="utf-8")
            aside.replace(self._file)
            self._written = now
        except OSError as error:
            if not self._faulty:
                self._say(
                    f"{self._file} cannot be written ({error.strerror}); the work goes on, but "
                    "`megatron-vr status` does not see how far it is"
                )
            self._faulty = True


class Counted:
    """What a bar has been told. Numbers change in one thread and are read in another."""

    def __init__(
        self, unit: str, total: int | None, before: int, others: Callable[[], int]
    ) -> None:
        self.unit, self.total, self.before, self.others = unit, total, before, others
        self.began = time.time()
        self.made = self.earlier = self.tokens = 0

    def progress(self) -> StageProgress:
        """As it is now."""
        began_done, made = self.before + self.earlier, self.made
        return StageProgress(
            done=began_done + made + self.others(),
            total=self.total,
            unit=self.unit,
            began=self.began,
            began_done=began_done,
            at=time.time(),
            tokens=self.tokens,
            made=made,
        )
