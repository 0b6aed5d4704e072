"""SIGTERM and SIGUSR1 stop a run where it has saved, and all its processes at the same place."""

from __future__ import annotations

import os
import signal

import pytest

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.progress import Talk
from megatron_vr.errors import Requeue
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from tests.parallel.launch import run_ranks


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_only_sets_the_flag(signum: signal.Signals) -> None:
    with Interrupt() as interrupt:
        interrupt.check("nothing")
        assert not interrupt.requested
        os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
        assert interrupt.signal_name == signum.name
        with pytest.raises(Requeue) as stopped:
            interrupt.check("part 3 of [1] sample")
    assert stopped.value.exit_code == 75
    assert str(stopped.value) == (
        f"{signum.name} received: stopped after part 3 of [1] sample; "
        "the same command goes on from there"
    )


def test_the_old_handlers_come_back() -> None:
    seen: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda signum, frame: seen.append(signum))
    try:
        with Interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert seen == [signal.SIGUSR1]


def test_a_forked_child_dies_of_the_signal() -> None:
    with Interrupt() as interrupt:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGTERM
        assert not interrupt.requested


def meet_once(rank: int, asked: int) -> str:
    """What the rank meets when only the rank `asked` has got a signal."""
    with Interrupt() as interrupt:
        context = Context(World(rank, 2), Talk(speaks=False), interrupt)
        context.meet("the first part")
        if rank == asked:
            os.kill(os.getpid(), signal.SIGUSR1)
        try:
            context.meet("the second part")
        except Requeue as stopped:
            return str(stopped)
    return "went on"


def test_one_process_that_is_asked_stops_all_at_the_same_place() -> None:
    told = run_ranks(meet_once, 2, 1)
    assert told[0] == told[1]
    assert told[0].startswith("SIGUSR1 received: stopped after the second part;"), told


def test_nobody_stops_unasked() -> None:
    assert run_ranks(meet_once, 2, -1) == ["went on", "went on"]
