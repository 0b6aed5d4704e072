"""Runs the parts, each in processes of its own, until their deadlines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.on_gpu.parts import LEAST_SECONDS, Part, ends
from tools.bench.on_gpu.record import OUT_OF_TIME, Record, smaller_row

# A case that runs out of memory is tried with 3/4 of the layers, so often.
TRIES_SMALLER = 2
# Of what its process printed, what is kept of a case that failed.
LOG_LINES = 40
LEAVING_SECONDS = 5.0
ROOT = Path(__file__).resolve().parents[3]

Told = Callable[[Part, dict[str, Any]], None]


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark: `folder` is for what is thrown away, `logs` for what the processes
    print, `told` hears every event of a part, `environment` is that of its processes."""

    record: Record
    folder: Path
    logs: Path
    told: Told
    environment: dict[str, str]
    rehearse: bool = False
    least_seconds: float = LEAST_SECONDS


def run_parts(bench: Bench, parts: Sequence[Part], seconds: float) -> None:
    """Measure `parts` within `seconds`. In the end cases that were never begun get what time is
    left, then those that were cut off and had had less; of those that had none, it is recorded."""
    begin = time.time()
    bench.logs.mkdir(parents=True, exist_ok=True)
    for part in parts:
        for case in part.cases:
            bench.record.case(part.name, case)
    bench.record.write()
    for part, until in zip(parts, ends(parts, begin, seconds), strict=True):
        run_part(bench, part, until)
    for again in (False, True):
        for part in parts:
            run_part(bench, part, begin + seconds, again)
    bench.record.content["seconds"] = round(time.time() - begin, 1)
    bench.record.write()


def run_part(bench: Bench, part: Part, until: float, again: bool = False) -> None:
    """Measure the cases of `part` that nothing is known of yet, until then; with `again` those that
    were cut off."""
    wanted = _worth_more if again else _open
    entry = bench.record.content["parts"][part.name]
    smaller = entry.get("smaller", 0)
    waiting = [case for case in part.cases if wanted(bench.record, part, case, until)]
    began = time.time()
    while waiting and until - time.time() >= bench.least_seconds:
        attempt = Attempt(bench, part, until, smaller)
        attempt.run(waiting)
        too_large = attempt.out_of_memory
        if part.shrinks and too_large and smaller < TRIES_SMALLER:
            # What follows is compared with it, and so takes the same.
            bench.record.drop(part.name, too_large, smaller)
            smaller = entry["smaller"] = smaller + 1
            waiting = waiting[waiting.index(too_large) :]
            reference = part.compared_with(too_large)
            if reference is not None and bench.record.case(part.name, reference)["rows"]:
                waiting = [reference, *(case for case in waiting if case != reference)]
            continue
        waiting = [case for case in waiting if wanted(bench.record, part, case, until)]
    entry["seconds"] = round(entry.get("seconds", 0.0) + time.time() - began, 1)


def _open(record: Record, part: Part, case: str, until: float = 0.0) -> bool:
    """Whether nothing is known of it."""
    entry = record.case(part.name, case)
    return bool(entry["status"] == "not run" and entry["why"] == OUT_OF_TIME)


def _worth_more(record: Record, part: Part, case: str, until: float) -> bool:
    """Whether it was cut off, and has more time until then than it had."""
    entry = record.case(part.name, case)
    return bool(entry["status"] == "cut off" and entry["seconds"] < until - time.time())


class Attempt:
    """One process for the `cases` of a part, and what it tells; `out_of_memory` is the case in
    which memory ran out."""

    def __init__(self, bench: Bench, part: Part, until: float, smaller: int) -> None:
        self._bench, self._part, self._until, self._smaller = bench, part, until, smaller
        self._current: str | None = None
        self._began = time.time()
        self.out_of_memory: str | None = None

    def run(self, cases: Sequence[str]) -> None:
        """Start it, hear it, end it at the deadline, and note what became of its cases."""
        folder = self._bench.folder
        number = len(list(folder.glob("*.jsonl")))
        events = folder / f"{number:03d}.jsonl"
        log = self._bench.logs / f"{number:03d}-{self._part.name}.log"
        events.touch()
        with open(log, "wb") as output:
            process = subprocess.Popen(
                self._command(cases, events),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=self._bench.environment,
                # Its own group: whatever it starts ends with it.
                start_new_session=True,
            )
            try:
                in_time = self._hear(process, events)
            finally:
                _end(process)
        self._settle(cases, in_time, process.returncode, log)
        self._keep_log(cases, log)

    def _command(self, cases: Sequence[str], events: Path) -> list[str]:
        words = [sys.executable, "-m", "tools.bench.on_gpu.child", self._part.module, *cases]
        words += ["--events", str(events), "--until", str(self._until)]
        words += ["--folder", str(self._bench.folder), "--smaller", str(self._smaller)]
        words += ["--parent", str(os.getpid())]
        return [*words, "--rehearse"] if self._bench.rehearse else words

    def _hear(self, process: subprocess.Popen[bytes], events: Path) -> bool:
        """Take up what it tells until it ends; False where the deadline came first."""
        lines = _followed(events)
        while True:
            ended = process.poll() is not None
            for line in lines():
                self._take(json.loads(line))
            if ended:
                return True
            if time.time() >= self._until:
                return False
            time.sleep(0.05)

    def _take(self, event: dict[str, Any]) -> None:
        record, part, case = self._bench.record, self._part.name, event["case"]
        kind = event["event"]
        if kind == "begin":
            self._current, self._began = case, event["at"]
            record.set(part, case, "running")
        elif kind == "row":
            values = event["values"] | ({"smaller": self._smaller} if self._smaller else {})
            record.row(part, case, self._row_name(case, event["name"]), values)
        else:
            self._current = None
            record.case(part, case)["seconds"] = round(event["at"] - self._began, 1)
            record.set(part, case, kind, event.get("why", ""))
            if event.get("out_of_memory"):
                self.out_of_memory = case
        self._bench.told(self._part, event)

    def _row_name(self, case: str, name: str) -> str:
        """With fewer layers than a row of that name has, its own: each is compared with others of
        its depth."""
        before = self._bench.record.case(self._part.name, case)["rows"].get(name)
        if before is None or before.get("smaller", 0) == self._smaller:
            return name
        return smaller_row(name, self._smaller)

    def _settle(self, cases: Sequence[str], in_time: bool, code: int | None, log: Path) -> None:
        """Note the case that the process did not end, and that it began none."""
        record, part = self._bench.record, self._part.name
        if not in_time:
            if self._current is not None:
                record.case(part, self._current)["seconds"] = round(time.time() - self._began, 1)
                record.set(part, self._current, "cut off", "cut off: its time was over")
            return
        case = self._current
        if case is None and all(_open(record, self._part, case) for case in cases):
            case = cases[0]
        if case is not None:
            record.set(part, case, "failed", f"exit status {code}: {last_line(log)}")
            self._bench.told(self._part, {"event": "failed", "case": case, "why": last_line(log)})

    def _keep_log(self, cases: Sequence[str], log: Path) -> None:
        """The last lines of it into those of its cases that failed or were cut off."""
        record = self._bench.record
        for case in cases:
            entry = record.case(self._part.name, case)
            entry.pop("log", None)
            if entry["status"] in ("failed", "cut off"):
                entry["log"] = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
        record.write()


def last_line(log: Path) -> str:
    """The last line of what a process printed that is not empty."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")


def _followed(file: Path) -> Callable[[], Iterator[str]]:
    """A function that gives the whole lines that came since it was last called."""
    place = 0

    def lines() -> Iterator[str]:
        nonlocal place
        with open(file, "rb") as stream:
            stream.seek(place)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                place += len(line)
                yield line.decode()

    return lines


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it started, at once: nothing of theirs is worth waiting for."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A device that does not answer can hold a process that was killed.
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=LEAVING_SECONDS)
