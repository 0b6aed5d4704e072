"""Servers end when asked, are killed when not, and never outlive this process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_vr.errors import StageError
from megatron_vr.rollout.servers import processes
from megatron_vr.rollout.servers.processes import ServerProcess
from megatron_vr.rollout.servers.watched import Watched
from tests.rollout.servers.small_servers import (
    FAMILY,
    OWNER,
    POLITE,
    SLEEPS,
    STUBBORN,
    Start,
    free_url,
    living,
    pids_in,
    servers_in,
    wait_until,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Start]:
    with servers_in(tmp_path) as make:
        yield make


def test_a_server_that_is_asked_to_end_may_say_goodbye(server: Start) -> None:
    process = server(POLITE)
    process.start()
    assert pids_in(process.log) == [process.pid]
    process.stop(patience_seconds=20)
    assert not process.alive
    assert process.exit_code == 7
    assert process.tail().endswith("goodbye")


def test_a_stopped_server_ends_too(server: Start) -> None:
    process = server(POLITE)
    process.start()
    (pid,) = pids_in(process.log)
    os.kill(pid, signal.SIGSTOP)
    process.stop(patience_seconds=20)
    assert process.exit_code == 7


def test_a_server_that_ignores_sigterm_is_killed_with_its_children(server: Start) -> None:
    process = server(STUBBORN)
    process.start()
    pids = pids_in(process.log)
    assert len(living(pids)) == 3
    process.stop(patience_seconds=0.5)
    assert (process.alive, process.exit_code, living(pids)) == (False, -signal.SIGKILL, [])


def test_a_killed_server_is_gone_at_once_even_when_it_is_stopped(server: Start) -> None:
    process = server(STUBBORN)
    process.start()
    pids = pids_in(process.log)
    os.kill(pids[0], signal.SIGSTOP)
    begin = time.monotonic()
    process.kill()
    process.kill()
    assert living(pids) == []
    assert time.monotonic() - begin < 30


def test_what_a_dead_server_leaves_behind_ends(server: Start) -> None:
    process = server(STUBBORN)
    process.start()
    pids = pids_in(process.log)
    os.kill(pids[0], signal.SIGSEGV)
    wait_until(lambda: not process.alive)
    assert (process.exit_code, living(pids)) == (-signal.SIGSEGV, [])


def test_a_killed_server_may_be_started_again_but_no_stopped_one(server: Start) -> None:
    process = server(SLEEPS)
    process.start()
    process.kill()
    process.start()
    process.stop(patience_seconds=20)
    with pytest.raises(StageError, match="was stopped"):
        process.start()
    assert not process.alive


def test_a_server_that_never_ran_is_not_started_once_it_is_stopped(server: Start) -> None:
    process = server(SLEEPS)
    process.stop(patience_seconds=20)
    with pytest.raises(StageError, match="was stopped"):
        process.start()
    assert not process.log.exists()


@pytest.mark.parametrize("end", [ServerProcess.kill, lambda process: process.stop(20)])
def test_a_server_that_is_ended_while_it_starts_ends(
    server: Start, end: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(*order: Any) -> Watched:
        begun.set()
        assert go.wait(20)
        return Watched(*order)

    monkeypatch.setattr(processes, "Watched", slow)
    process = server(SLEEPS)
    starter = threading.Thread(target=process.start)
    starter.start()
    assert begun.wait(20)
    ender = threading.Thread(target=end, args=(process,))
    ender.start()
    ender.join(0.3)
    go.set()
    for thread in (starter, ender):
        thread.join(20)
    assert process.pid is not None
    assert not process.alive and not living([process.pid])


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_this_process_ends_all_of_the_servers_end(tmp_path: Path, signum: int) -> None:
    url = free_url()
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, STUBBORN, url, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    pids = pids_in(tmp_path / f"server-{url.rsplit(':', 1)[1]}.log")
    assert len(living(pids)) == 3
    owner.send_signal(signum)
    owner.wait()
    wait_until(lambda: not living(pids))


def test_a_server_ends_even_when_its_watcher_is_killed(server: Start) -> None:
    process = server(FAMILY)
    process.start()
    parent, child = pids_in(process.log)
    os.kill(psutil.Process(parent).ppid(), signal.SIGKILL)
    wait_until(lambda: not process.alive and not living([parent]))
    assert process.exit_code == -signal.SIGKILL
    process.kill()
    wait_until(lambda: not living([child]))


def test_signals_that_stop_us_do_not_reach_a_server(server: Start) -> None:
    process = server(SLEEPS)
    process.start()
    (pid,) = pids_in(process.log)
    watcher = psutil.Process(pid).ppid()
    assert len({os.getsid(0), os.getsid(pid), os.getsid(watcher)}) == 3
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        os.kill(watcher, signum)
    # Slurm may send it to every process of a step, whatever its group.
    os.kill(pid, signal.SIGUSR1)
    time.sleep(0.5)
    assert process.alive and living([pid])
