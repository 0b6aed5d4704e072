"""Ranks that watch each other: three real processes, of which one dies, hangs, fails or leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.parallel.vital import Member, Silence, Verdict, find_dead, watched_by

ROOT = Path(__file__).parents[2]
RANKS = 3
# More than any test needs, also on a loaded machine; without a heartbeat they would wait longer.
BOUND_SECONDS = 120.0
PATIENT, IMPATIENT = 200.0, 12.0


# --- who is dead, as a decision


@pytest.mark.parametrize(
    ("watched", "silent", "gone", "left", "dead"),
    [
        (1, 0.0, [], set(), None),
        (1, 9.9, [], set(), None),
        (1, 10.0, [], set(), 1),
        (1, 10.0, [], {1}, None),
        (None, 99.0, [], {0, 1, 2}, None),
        (1, 0.0, [2], set(), 2),
        (1, 0.0, [3, 2], set(), 2),
        (1, 0.0, [2], {2}, None),
        (1, 10.0, [2], {2}, 1),
        (1, 10.0, [0], set(), 0),
    ],
    ids=[
        "all is well",
        "silent, not for long enough",
        "silent for too long",
        "silent since its goodbye",
        "nobody left to watch",
        "a process is gone",
        "the first of two",
        "gone after its goodbye",
        "one left, another is silent",
        "gone counts before silent",
    ],
)
def test_who_is_dead(
    watched: int | None, silent: float, gone: list[int], left: set[int], dead: int | None
) -> None:
    verdict = find_dead(watched, silent, 10.0, gone, left)
    assert (verdict.rank if verdict else None) == dead


@pytest.mark.parametrize(
    ("rank", "left", "watched"),
    [(0, set(), 1), (2, set(), 0), (0, {1}, 2), (2, {0}, 1), (1, {0, 2}, None)],
)
def test_whom_a_rank_watches(rank: int, left: set[int], watched: int | None) -> None:
    assert watched_by(rank, 3, left) == watched


def test_silence_adds_up_until_the_counter_moves() -> None:
    silence = Silence(5, at=100.0)
    for now in (101.0, 102.0, 103.0):
        silence = silence.after(5, now, longest_step=2.0)
    assert silence.seconds == 3.0
    assert silence.after(6, 104.0, longest_step=2.0).seconds == 0.0


def test_who_slept_itself_has_not_heard_silence() -> None:
    asleep = Silence(5, at=100.0).after(5, 4000.0, longest_step=2.0)
    assert asleep.seconds == 2.0


def test_process_ids_are_compared_on_one_host_only() -> None:
    one = Member(0, 10, "a", "pid:[1]", 0.0)
    assert one.beside(Member(1, 10, "a", "pid:[1]", 0))
    assert not one.beside(Member(1, 10, "b", "pid:[1]", 0))
    assert not one.beside(Member(1, 10, "a", "pid:[2]", 0))
    assert Verdict(1, "gone").died


# --- real processes


@dataclass(frozen=True)
class Forks:
    """The process that forks the ranks; see `heartbeat_rank`."""

    process: subprocess.Popen[str]
    alive: set[int]

    def start(self, folder: Path, act: str, patience: float) -> list[Rank]:
        pids = self._ask(start=[RANKS, str(folder), patience, act])
        self.alive.update(pids)
        return [Rank(pid, folder / f"errors-{n}", self) for n, pid in enumerate(pids)]

    def poll(self, pid: int) -> int | None:
        code: int | None = self._ask(poll=pid)
        if code is not None:
            self.alive.remove(pid)
        return code

    def _ask(self, **request: object) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@dataclass(frozen=True)
class Rank:
    """A forked rank. It stays a zombie until it has `ended`, as ranks of a launcher do."""

    pid: int
    errors: Path
    forks: Forks

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def ended(self) -> tuple[int, str]:
        """Exit code and standard error of a rank that ends by itself, soon."""
        deadline = time.monotonic() + BOUND_SECONDS
        while (code := self.forks.poll(self.pid)) is None:
            assert time.monotonic() < deadline, f"still there: {self.errors.read_text()}"
            time.sleep(0.05)
        return code, self.errors.read_text()


World = Callable[[Path, str, float], AbstractContextManager[list[Rank]]]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.parallel.heartbeat_rank"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Forks(process, set())


@pytest.fixture
def world(forks: Forks) -> World:
    """Starts three ranks that do an act; killed on leaving."""

    @contextmanager
    def started(folder: Path, act: str, patience: float) -> Iterator[list[Rank]]:
        folder.mkdir(exist_ok=True)
        ranks = forks.start(folder, act, patience)
        try:
            yield ranks
        finally:
            for rank in ranks:
                if rank.pid in forks.alive:
                    rank.send_signal(signal.SIGKILL)
                    rank.ended()

    return started


def wait_until_all_begun(folder: Path) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while len(list(folder.glob("begun-*"))) < RANKS:
        assert time.monotonic() < deadline, "the ranks never began"
        time.sleep(0.05)
    time.sleep(0.5)


@pytest.mark.parametrize("victim", [1, 0])
@pytest.mark.parametrize("act", ["sum_for_ever", "work_alone", "wait_in_a_barrier"])
def test_a_killed_rank_is_named_and_the_others_end(
    world: World, tmp_path: Path, act: str, victim: int
) -> None:
    with world(tmp_path, act, PATIENT) as ranks:
        wait_until_all_begun(tmp_path)
        ranks[victim].send_signal(signal.SIGKILL)
        for rank, process in enumerate(ranks):
            if rank != victim:
                code, errors = process.ended()
                assert f"rank {victim} (pid {ranks[victim].pid} on" in errors, errors
                assert "is dead" in errors
                assert code == 1


def test_a_rank_that_hangs_is_named_after_the_patience(world: World, tmp_path: Path) -> None:
    """Rank 1 of one world and, with the store, rank 0 of another: both are waited for at once."""
    with ExitStack() as stack:
        worlds = {
            victim: stack.enter_context(
                world(tmp_path / str(victim), "wait_in_a_barrier", IMPATIENT)
            )
            for victim in (1, 0)
        }
        for victim, ranks in worlds.items():
            wait_until_all_begun(tmp_path / str(victim))
            ranks[victim].send_signal(signal.SIGSTOP)
        for victim, ranks in worlds.items():
            for rank, process in enumerate(ranks):
                if rank != victim:
                    code, errors = process.ended()
                    assert f"rank {victim} (pid {ranks[victim].pid} on" in errors, errors
                    assert f"for {IMPATIENT:g} seconds" in errors
                    assert code == 1


def test_a_rank_that_has_left_is_not_called_dead(world: World, tmp_path: Path) -> None:
    with world(tmp_path, "leave_early", 6.0) as ranks:
        for process in ranks:
            code, errors = process.ended()
            assert code == 0, errors
            assert "dead" not in errors
    assert (tmp_path / "survived").exists()


def test_a_rank_that_stops_as_asked_takes_the_others_along(world: World, tmp_path: Path) -> None:
    with world(tmp_path, "stop_early", PATIENT) as ranks:
        for process in ranks:
            code, errors = process.ended()
            assert code == 75, errors
            assert "Traceback" not in errors


def test_a_rank_that_fails_ends_the_others_with_its_code_and_one_message(
    world: World, tmp_path: Path
) -> None:
    with world(tmp_path, "fail", PATIENT) as ranks:
        told = [process.ended() for process in ranks]
    assert [code for code, _ in told] == [1, 1, 1]
    assert "row 7 is bad" in told[1][1]
    assert not told[0][1] and not told[2][1], told


def test_an_error_that_no_peer_caused_goes_on_unchanged(world: World, tmp_path: Path) -> None:
    with world(tmp_path, "break_alone", PATIENT) as ranks:
        code, errors = ranks[1].ended()
        assert code == 1
        assert "RuntimeError: out of luck" in errors
        assert "dead" not in errors
        assert ranks[0].ended()[0] == ranks[2].ended()[0] == 1
