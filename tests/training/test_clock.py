"""The clock of a step with a time that the test sets, spreads, and memory."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from megatron_vr.training.clock import PhaseSeconds, StepClock, peak_memory_gib, spread


class Time:
    """A time that passes when told to; waiting for the device takes `lag` seconds, once."""

    def __init__(self) -> None:
        self.seconds = 100.0
        self.lag = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self) -> None:
        self.seconds += self.lag
        self.lag = 0.0

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


def test_each_phase_is_charged_with_the_time_inside_it_and_the_rest_with_none() -> None:
    time = Time()
    clock = StepClock(now=time.now)
    with clock.phase("data"):
        time.passes(1.0)
    time.passes(50.0)
    with clock.phase("forward_backward"):
        time.passes(4.0)
    with clock.phase("optimizer"):
        time.passes(2.0)
    with clock.phase("data"):
        time.passes(0.5)
    assert clock.take() == PhaseSeconds(data=1.5, forward_backward=4.0, optimizer=2.0)


def test_taking_begins_anew_so_a_checkpoint_after_it_falls_to_the_next_step() -> None:
    time = Time()
    clock = StepClock(now=time.now)
    with clock.phase("data"):
        time.passes(1.0)
    assert clock.take() == PhaseSeconds(data=1.0)
    with clock.phase("checkpoint"):
        time.passes(9.0)
    with clock.phase("data"):
        time.passes(2.0)
    assert clock.take() == PhaseSeconds(data=2.0, checkpoint=9.0)
    assert clock.take() == PhaseSeconds()


@pytest.mark.parametrize(("exact", "compute", "optimizer"), [(True, 10.0, 1.0), (False, 0.25, 1.0)])
def test_only_an_exact_clock_waits_for_the_device(
    exact: bool, compute: float, optimizer: float
) -> None:
    time = Time()
    clock = StepClock(exact=exact, now=time.now, wait=time.wait)
    with clock.phase("forward_backward"):
        time.passes(0.25)
        time.lag = 9.75
    with clock.phase("optimizer"):
        time.passes(1.0)
    taken = clock.take()
    assert (taken.forward_backward, taken.optimizer) == (compute, optimizer)


def test_work_of_before_is_not_charged_to_an_exact_phase() -> None:
    time = Time()
    clock = StepClock(exact=True, now=time.now, wait=time.wait)
    time.lag = 7.0
    with clock.phase("data"):
        time.passes(1.0)
    assert clock.take() == PhaseSeconds(data=1.0)


def test_a_phase_that_fails_is_charged_and_over() -> None:
    time = Time()
    clock = StepClock(now=time.now)
    with pytest.raises(ZeroDivisionError), clock.phase("optimizer"):
        time.passes(3.0)
        raise ZeroDivisionError
    with clock.phase("data"):
        time.passes(1.0)
    assert clock.take() == PhaseSeconds(data=1.0, optimizer=3.0)


def test_phases_do_not_nest_and_the_clock_is_not_read_inside_one() -> None:
    clock = StepClock()
    with clock.phase("forward_backward"):
        begins = pytest.raises(RuntimeError, match="data begins inside phase forward_backward")
        with begins, clock.phase("data"):
            pass
        with pytest.raises(RuntimeError, match="read inside phase forward_backward"):
            clock.take()


def test_spread_is_how_much_longer_the_slowest_takes_than_the_mean() -> None:
    assert spread([1.0, 1.0, 1.0, 3.0]) == pytest.approx(1.0)
    assert spread([2.0, 4.0]) == pytest.approx(1 / 3)
    assert spread([0.1]) == spread([0.1, 0.1, 0.1]) == spread([0.0, 0.0]) == 0.0
    with pytest.raises(ValueError, match="at least one rank"):
        spread([])


def test_without_a_gpu_peak_memory_is_the_resident_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the reference is Linux's /proc")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
    assert peak is not None
    # The kernel keeps the mark of the process that started this one too: never less than VmHWM.
    assert 0.99 * int(peak[1]) / 2**20 <= peak_memory_gib() < 1024


def test_with_a_gpu_peak_memory_is_what_torch_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 * 2**29)
    assert peak_memory_gib() == 2.5
