"""Launchers that meet and hear of each other: a real store, several of them in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import pytest

from megatron_vr.errors import Requeue, SettingsError, StageError
from megatron_vr.parallel.hosts import Hosts, check_hosts
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.meeting import Meeting
from megatron_vr.parallel.outcome import End
from tests.parallel.two_nodes import free_port

T = TypeVar("T")
BOUND_SECONDS = 60.0
KILLED = End(1, "gpu-2", 1, "rank 8 was killed by SIGKILL; …", blame=True)


def of_each(count: int, work: Callable[[Hosts], T], patience: float = 30.0) -> list[T]:
    """What `work` returns for each of `count` hosts, side by side."""
    meet = f"127.0.0.1:{free_port()}"
    found: dict[int, T] = {}

    def one(rank: int) -> None:
        found[rank] = work(Hosts(count, rank, meet, meet_seconds=20.0, patience_seconds=patience))

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
    assert len(found) == count, "a host did not end, or failed"
    return [found[rank] for rank in range(count)]


def wait_to_hear(meeting: Meeting) -> End:
    deadline = time.monotonic() + BOUND_SECONDS
    while (end := meeting.heard()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return end


def test_what_one_host_tells_all_others_hear() -> None:
    def work(hosts: Hosts) -> End:
        with Meeting(hosts, Interrupt()) as meeting:
            if hosts.rank == 1:
                return meeting.agree(KILLED)
            return meeting.agree(wait_to_hear(meeting))

    assert of_each(3, work) == [KILLED] * 3


def test_hosts_agree_on_the_cause_and_not_on_what_followed_from_it() -> None:
    def work(hosts: Hosts) -> End:
        with Meeting(hosts, Interrupt()) as meeting:
            if hosts.rank == 1:
                time.sleep(1.0)
                return meeting.agree(KILLED)
            return meeting.agree(End(hosts.rank, f"gpu-{hosts.rank + 1}", 1))

    assert of_each(3, work) == [KILLED] * 3


def test_hosts_that_end_well_hear_nothing() -> None:
    def work(hosts: Hosts) -> End | None:
        with Meeting(hosts, Interrupt()) as meeting:
            time.sleep(1.2 * hosts.rank)
            return meeting.heard()

    assert of_each(3, work, patience=2.0) == [None] * 3


def test_a_launcher_that_gives_no_sign_is_named() -> None:
    """The last of three comes, and then does nothing; killed processes are in test_nodes."""

    def work(hosts: Hosts) -> End | None:
        meeting = Meeting(hosts, Interrupt())
        if hosts.rank == 2:
            meeting._thread = threading.Thread(target=time.sleep, args=(0,))
            meeting.__enter__()
            return None
        with meeting:
            return wait_to_hear(meeting)

    first, second, _ = of_each(3, work, patience=2.0)
    assert first == second
    assert first is not None and first.blame and first.teller == 1, "the one before watches it"
    assert "launcher of host 2 of 3 gave no sign for 2 seconds" in (first.line or "")


def test_who_is_asked_to_stop_while_it_waits_stops_those_that_have_come() -> None:
    def work(hosts: Hosts) -> str:
        interrupt = Interrupt()
        if hosts.rank == 1:
            time.sleep(1.0)
            interrupt._note(15, None)
        if hosts.rank == 2:
            return "never comes"
        try:
            Meeting(hosts, interrupt).__enter__()
        except (Requeue, StageError) as error:
            return type(error).__name__
        return "met"

    assert of_each(3, work)[0] == "Requeue"


def test_a_port_that_is_taken_is_told() -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        hosts = Hosts(2, 0, f"127.0.0.1:{taken.getsockname()[1]}", meet_seconds=5.0)
        with pytest.raises(StageError, match=r"cannot meet at 127\.0\.0\.1:\d+ \(--meet\)"):
            Meeting(hosts, Interrupt()).__enter__()


@pytest.mark.parametrize("meet", ["gpu-01", "gpu-01:", ":29500", "gpu-01:port", "gpu-01:99999"])
def test_an_address_that_is_none_is_refused(meet: str) -> None:
    with pytest.raises(SettingsError, match="HOST:PORT"):
        check_hosts(Hosts(2, 0, meet))


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_of_no_host_is_refused(rank: int) -> None:
    with pytest.raises(SettingsError, match=f"--node-rank is {rank}"):
        check_hosts(Hosts(2, rank, "gpu-01:29500"))
