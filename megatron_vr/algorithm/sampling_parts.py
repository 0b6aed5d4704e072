"""Sampling part by part: completions are journaled as they come, a whole part becomes a table.

Parts overlap: while the last generations of one run, the next ones' have begun, so an engine never
waits for a straggler. Tables are made (and answers graded) beside the sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from megatron_vr.grading.pool import Abandoned
from megatron_vr.rollout.engine import Ask, Completion, Engine
from megatron_vr.rollout.journal import Journal, read_journal
from megatron_vr.traces.store import StageFolder, count_parts, part_items

Completions = Mapping[str, Completion]

LOOK_SECONDS = 0.5  # while tables are made


class Sampled(Protocol):
    """What a stage samples: `total` items in parts of `part_size`, each of `per_item` asks."""

    @property
    def total(self) -> int: ...

    @property
    def part_size(self) -> int: ...

    @property
    def per_item(self) -> int: ...

    def asks(self, item: int) -> Sequence[Ask]:
        """The generations of item `item`; their ids are unique in the stage."""
        ...

    def table(self, span: range, completions: Completions) -> pa.Table:
        """The rows of the items `span`, from all their completions by id."""
        ...


@dataclass(frozen=True)
class Part:
    """Part `index` of what `sampled` describes, to be made in `folder`."""

    folder: StageFolder
    sampled: Sampled
    index: int

    @property
    def items(self) -> range:
        """Which items it holds."""
        return part_items(self.index, self.sampled.part_size, self.sampled.total)

    @property
    def generations(self) -> int:
        """How many generations it takes."""
        return len(self.items) * self.sampled.per_item

    @property
    def journal(self) -> Path:
        """Where its completions are kept until it is whole."""
        return self.folder.path / f"part-{self.index:05d}.journal"

    @property
    def is_made(self) -> bool:
        """Whether it is there, whole."""
        return self.folder.part(self.index).exists()

    def asks(self) -> list[Ask]:
        """All its generations."""
        return [ask for item in self.items for ask in self.sampled.asks(item)]

    def write(self) -> None:
        """Make the table from the journal."""
        table = self.sampled.table(self.items, read_journal(self.journal))
        self.folder.write_part(self.index, table)
        self.journal.unlink()


@dataclass(eq=False)
class _Open:
    """A part under way. `missing`: ids without a completion."""

    part: Part
    journal: Journal
    missing: set[str]


def missing_parts(folder: StageFolder, sampled: Sampled) -> list[Part]:
    """The parts of `sampled` that `folder` has not."""
    missing = folder.missing(count_parts(sampled.total, sampled.part_size))
    return [Part(folder, sampled, index) for index in missing]


class PartSampler:
    """Makes `parts`, which may be of several stages if the ids of all their asks are distinct.

    `advance` is told of each finished generation, those of an earlier attempt included, unless
    `earlier` is told of these; `tokens` of how many tokens were generated.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        advance: Callable[[int], None],
        *,
        earlier: Callable[[int], None] | None = None,
        tokens: Callable[[int], None] | None = None,
    ) -> None:
        self._parts = parts
        self._advance = advance
        self._earlier = earlier or advance
        self._tokens = tokens or (lambda amount: None)
        self._open_of: dict[str, _Open] = {}
        self._open: set[_Open] = set()
        self._writing: list[Future[None]] = []

    def run(self, engine: Engine, stopping: Callable[[], bool]) -> None:
        """Return when all is written, or soon after `stopping` says so: the journals stay.

        Then tables that nobody began are not made; the one under way is waited for unless its
        grading is Abandoned.
        """
        with ThreadPoolExecutor(1, "parts") as writer:
            try:
                stream = engine.stream(self._groups(writer), stopping)
                with closing(stream):
                    for completion in stream:
                        self._take(completion, writer)
                        self._check_writer(stopping)
            finally:
                for part in self._open:
                    part.journal.close()
                self._settle(stopping)
                if stopping():
                    writer.shutdown(cancel_futures=True)
        self._check_writer(stopping)

    def _groups(self, writer: ThreadPoolExecutor) -> Iterator[list[Ask]]:
        for part in self._parts:
            asks = part.asks()
            journal = Journal(part.journal)
            left = [ask for ask in asks if ask.request.id not in journal.ids]
            self._earlier(len(asks) - len(left))
            under_way = _Open(part, journal, {ask.request.id for ask in left})
            self._open.add(under_way)
            self._open_of |= dict.fromkeys(under_way.missing, under_way)
            if left:
                yield left
            else:
                self._close(under_way, writer)

    def _take(self, completion: Completion, writer: ThreadPoolExecutor) -> None:
        under_way = self._open_of.pop(completion.id)
        under_way.journal.add(completion)
        under_way.missing.discard(completion.id)
        self._advance(1)
        self._tokens(len(completion.token_ids))
        if not under_way.missing:
            self._close(under_way, writer)

    def _close(self, under_way: _Open, writer: ThreadPoolExecutor) -> None:
        under_way.journal.close()
        self._open.discard(under_way)
        self._writing.append(writer.submit(under_way.part.write))

    def _settle(self, stopping: Callable[[], bool]) -> None:
        """Return when all parts at hand are written, or `stopping` says so."""
        left = set(self._writing)
        while left and not stopping():
            left = wait(left, timeout=LOOK_SECONDS).not_done

    def _check_writer(self, stopping: Callable[[], bool]) -> None:
        """Raise at once what the writing of a part failed of, unless it was asked to stop."""
        done = [written for written in self._writing if written.done()]
        for written in done:
            if written.cancelled():
                continue
            error = written.exception()
            if error is not None and not (isinstance(error, Abandoned) and stopping()):
                raise error
        self._writing = [written for written in self._writing if written not in done]
