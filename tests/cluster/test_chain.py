"""What is submitted, and after what."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.cluster.chain import Decision, Live, decide
from megatron_vr.cluster.job import Job, Shape
from megatron_vr.errors import StageError

SHAPE = Shape(1, 0, 1, None, None, "1:00", None, ())
# sft → export → sample → train, and weigh between sample and train.
PARENTS = {
    "sft": (),
    "export": ("sft",),
    "sample": ("export",),
    "weigh": ("sample",),
    "train": ("export", "sample", "weigh"),
}
JOBS = [Job(name, name, "cpu", SHAPE, parents) for name, parents in PARENTS.items()]
ALL = frozenset(PARENTS)


def decided(
    done: Collection[str] = (),
    live: Mapping[str, Live] | None = None,
    chosen: Collection[str] = ALL,
) -> dict[str, Decision]:
    return {one.job.name: one for one in decide(JOBS, chosen, done, live or {})}


def test_a_new_run_is_submitted_whole_and_each_job_waits_for_all_its_parents() -> None:
    assert {name: (one.what, one.waits_for) for name, one in decided().items()} == {
        name: ("submit", parents) for name, parents in PARENTS.items()
    }


def test_nothing_waits_for_what_is_done() -> None:
    found = decided(done={"sft", "export"})
    assert [found[name].what for name in ("sft", "export", "sample")] == ["done", "done", "submit"]
    assert found["sample"].waits_for == ()
    assert found["train"].waits_for == ("sample", "weigh")


def test_what_is_queued_is_left_alone_and_waited_for() -> None:
    found = decided(done={"sft"}, live={"export": Live(7, running=True)})
    assert (found["export"].what, found["export"].id) == ("queued", 7)
    assert found["sample"].waits_for == ("export",)


def test_a_queued_job_whose_parent_is_submitted_anew_is_replaced() -> None:
    found = decided(done={"sft", "export"}, live={"weigh": Live(9, running=False)})
    assert (found["weigh"].what, found["weigh"].replaces) == ("submit", 9)


def test_a_running_job_whose_input_has_vanished_is_named() -> None:
    with pytest.raises(StageError, match=r"weigh runs as job 9, but sample"):
        decided(done={"sft", "export"}, live={"weigh": Live(9, running=True)})


def test_a_stage_whose_input_nobody_makes_is_refused() -> None:
    with pytest.raises(StageError, match=r"sample needs export, which is neither done nor queued"):
        decided(done={"sft"}, chosen={"sample", "weigh", "train"})


def test_a_part_of_the_chain_goes_behind_what_is_queued() -> None:
    found = decided(live={"export": Live(3, running=False)}, chosen={"sample"})
    assert list(found) == ["sample"]
    assert found["sample"].waits_for == ("export",)


@given(st.sets(st.sampled_from(sorted(ALL))), st.sets(st.sampled_from(sorted(ALL))))
def test_every_job_is_done_or_waits_for_jobs_that_exist_and_will_run(
    done: set[str], queued: set[str]
) -> None:
    live = {name: Live(number, running=False) for number, name in enumerate(sorted(queued))}
    found = decided(done, live)
    assert set(found) == ALL
    for name, one in found.items():
        if one.what == "submit":
            assert set(one.waits_for) == {p for p in PARENTS[name] if p not in done}
        if one.what == "queued":
            ends = {p: found[p].what for p in PARENTS[name]}
            assert "submit" not in ends.values(), f"{name} waits for a parent's old job: {ends}"
