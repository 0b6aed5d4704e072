"""Wall-time limits as sbatch reads them, and restarts against a simulation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.cluster.planner.limits import restarts, slurm_seconds


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("24:00:00", 86_400),
        ("1-12", 129_600),
        ("1-12:30", 131_400),
        ("2-00:00:05", 172_805),
    ],
)
def test_times_are_read_as_in_the_manual_of_sbatch(time: str, seconds: int) -> None:
    assert slurm_seconds(time) == seconds


@given(st.integers(0, 100_000), st.integers(0, 50), st.integers(100, 5_000), st.integers(0, 40))
def test_a_job_starts_again_until_its_work_is_done(
    work: int, start: int, limit: int, save: int
) -> None:
    left, starts = work, 1
    while left > limit - save - start:
        left -= limit - save - start
        starts += 1
    assert restarts(work, start, limit, save) == starts - 1


def test_a_limit_that_leaves_no_time_to_work_is_told() -> None:
    assert restarts(10, 300, 900, 900) is None
