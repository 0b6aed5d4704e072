"""Launchers that meet and hear of each other: a real store, several of them in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from megatron_vr.errors import Requeue, SettingsError, StageError
from megatron_vr.parallel.absent import to_blame
from megatron_vr.parallel.blame import FAILED_NODES, Report, read_reports
from megatron_vr.parallel.hosts import Hosts, check_hosts
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.meeting import Meeting
from megatron_vr.parallel.nodelist import NODE_LISTS
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


def test_hosts_that_are_stopped_together_agree_that_they_were() -> None:
    def work(hosts: Hosts) -> int:
        with Meeting(hosts, Interrupt()) as meeting:
            return meeting.agree(End(hosts.rank, f"gpu-{hosts.rank + 1}", 75)).code

    assert of_each(3, work) == [75] * 3


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


# Of hosts that do not come. Slurm's list is the only one that knows how they are called.


def missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hosts: Hosts) -> tuple[str, list[str]]:
    """What a launcher says when nobody else comes, and the hosts that it reports."""
    file = tmp_path / "failed"
    monkeypatch.setenv(FAILED_NODES, str(file))
    monkeypatch.setenv("SLURMD_NODENAME", f"gpu-{hosts.rank + 1}")
    with pytest.raises(StageError) as told:
        Meeting(hosts, Interrupt()).__enter__()
    return str(told.value), [report.host for report in read_reports(file)]


def test_a_host_that_never_comes_is_named_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu-[1-2]")
    hosts = Hosts(2, 0, f"127.0.0.1:{free_port()}", meet_seconds=0.5)
    told, reported = missed(monkeypatch, tmp_path, hosts)
    assert told.startswith(f"host 1 (gpu-2) of 2 did not come to {hosts.meet} within 0.5 s")
    assert "there are 0 (gpu-1)." in told
    assert reported == ["gpu-2"]


def test_a_host_0_that_never_comes_is_named_and_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "gpu-[1-3]")
    hosts = Hosts(3, 1, f"127.0.0.1:{free_port()}", meet_seconds=0.5)
    told, reported = missed(monkeypatch, tmp_path, hosts)
    assert told.startswith("host 0 (gpu-1) of 3 did not come") and "refused" in told
    assert reported == ["gpu-1"]


def test_without_slurms_list_a_missing_host_is_a_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in NODE_LISTS:
        monkeypatch.delenv(name, raising=False)
    hosts = Hosts(2, 0, f"127.0.0.1:{free_port()}", meet_seconds=0.5)
    told, reported = missed(monkeypatch, tmp_path, hosts)
    assert told.startswith("host 1 of 2 did not come") and not reported


def test_a_name_that_nobody_knows_costs_no_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu-[1-2]")
    hosts = Hosts(2, 1, "nobody.invalid:29500", meet_seconds=0.1)
    told, reported = missed(monkeypatch, tmp_path, hosts)
    assert told.startswith("host 0 (gpu-1) of 2 did not come") and not reported


FOUR = {rank: f"gpu-{rank}" for rank in range(4)}


@pytest.mark.parametrize(
    ("rank", "missing", "blamed", "named"),
    [
        (0, [2], [], ["gpu-2"]),
        (0, [1, 3], [], ["gpu-1", "gpu-3"]),
        (0, [1, 2, 3], [], []),
        (2, [0], [], ["gpu-0"]),
        (2, [0], ["gpu-1"], ["gpu-0"]),
        (2, [0], ["gpu-2"], []),
    ],
    ids=[
        "one",
        "half",
        "most: their cause is another",
        "host 0",
        "host 0, another being missed too",
        "host 0 has missed this one",
    ],
)
def test_who_is_left_out_for_not_coming(
    rank: int, missing: list[int], blamed: list[str], named: list[str]
) -> None:
    before = [Report(host, "did not come") for host in blamed]
    found = to_blame(Hosts(4, rank, "gpu-0:29500"), missing, FOUR, before)
    assert [report.host for report in found] == named


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
