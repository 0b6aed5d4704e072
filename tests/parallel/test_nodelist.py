"""Slurm's lists of nodes, against what `scontrol show hostnames` prints for them."""

from __future__ import annotations

import pytest

from megatron_vr.parallel.nodelist import expand_hosts, nodes_of_step


@pytest.mark.parametrize(
    ("text", "scontrol"),
    [
        ("gpu[01-03,7],x", "gpu01 gpu02 gpu03 gpu7 x"),
        ("r[0-1]n[08-10],a-b", "r0n08 r0n09 r0n10 r1n08 r1n09 r1n10 a-b"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("a1,a2", "a1 a2"),
        ("x", "x"),
        ("", ""),
    ],
)
def test_a_list_is_read_as_scontrol_reads_it(text: str, scontrol: str) -> None:
    assert expand_hosts(text) == scontrol.split()


def test_nodes_that_have_not_come_are_called_as_the_step_lists_them() -> None:
    listed = {"SLURM_STEP_NODELIST": "gpu[1-3]", "SLURM_JOB_NODELIST": "gpu[0-3]"}
    assert nodes_of_step(listed, 3, {1: "gpu2"}) == {0: "gpu1", 1: "gpu2", 2: "gpu3"}
    assert nodes_of_step({"SLURM_JOB_NODELIST": "a,b"}, 2, {0: "a"}) == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    "listed",
    [{}, {"SLURM_STEP_NODELIST": "gpu[1-2]"}, {"SLURM_STEP_NODELIST": "gpu[2-4]"}],
    ids=["no list", "of another number of nodes", "in another order"],
)
def test_a_list_that_does_not_fit_names_nobody(listed: dict[str, str]) -> None:
    assert nodes_of_step(listed, 3, {1: "gpu2"}) == {1: "gpu2"}
