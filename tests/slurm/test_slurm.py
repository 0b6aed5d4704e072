"""Slurm's programs, asked by `Slurm`, on a real cluster."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_vr.cluster.slurm import Slurm
from megatron_vr.errors import SettingsError, StageError
from tests.slurm.cluster import Cluster


@pytest.fixture
def client(slurm: Cluster) -> Slurm:
    return Slurm(slurm.environment)


def script(folder: Path, body: str, *options: str, name: str = "job") -> Path:
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options)]
    path = folder / f"{name}.sh"
    path.write_text("\n".join([*lines, f"#SBATCH --output={folder}/{name}.out", body, ""]))
    return path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus-per-node=9"], "Requested node configuration is not available"),
        (["--partition=nowhere"], "Invalid partition name specified"),
        (["--mem=9000G"], "Requested node configuration is not available"),
        (["--time=9-0"], "Requested time limit is invalid"),
        (["--nodes=5"], "Node count specification invalid"),
    ],
)
def test_what_slurm_refuses_is_told_with_its_own_words(
    client: Slurm, tmp_path: Path, options: list[str], words: str
) -> None:
    refused = script(tmp_path, "true", *options, "--job-name=secret")
    for ask in (client.test, client.submit):
        with pytest.raises(SettingsError) as told:
            ask(refused)
        assert words in str(told.value)
        assert str(refused) in str(told.value)
        assert options[0] in str(told.value)
        assert "secret" not in str(told.value)


def test_a_test_says_when_and_where_it_would_run_and_queues_nothing(
    client: Slurm, tmp_path: Path
) -> None:
    said = client.test(script(tmp_path, "true", "--nodes=2", "--job-name=vr-tested:a"))
    assert "to start at" in said
    assert "in partition main" in said
    assert client.named("vr-tested:") == {}


def test_a_child_begins_after_its_parents_and_dies_with_a_failed_one(
    slurm: Cluster, client: Slurm, tmp_path: Path
) -> None:
    first = client.submit(script(tmp_path, f"sleep 1; date +%s.%N > {tmp_path}/1", name="first"))
    second = client.submit(script(tmp_path, f"date +%s.%N > {tmp_path}/2", name="second"), [first])
    failing = client.submit(script(tmp_path, "exit 3", name="failing"))
    orphan = client.submit(script(tmp_path, "true", name="orphan"), [second, failing])
    slurm.wait_until(lambda: not any(one.alive for one in client.jobs([second, orphan]).values()))
    states = client.jobs([first, second, failing, orphan])
    assert {number: one.state for number, one in states.items()} == {
        first: "COMPLETED",
        second: "COMPLETED",
        failing: "FAILED",
        orphan: "CANCELLED",
    }
    assert float((tmp_path / "1").read_text()) < float((tmp_path / "2").read_text())
    assert [one.failed for one in states.values()].count(True) == 2


def test_a_parent_that_slurm_does_not_know_is_refused(client: Slurm, tmp_path: Path) -> None:
    known = client.submit(script(tmp_path, "true"))
    for parents in ([4_000_000], [known, 4_000_000]):
        child = script(tmp_path, "true", "--job-name=vr-orphan:a", name="child")
        with pytest.raises(StageError, match=r"child is to wait for job 4000000, .* does not know"):
            client.submit(child, parents)
    assert client.named("vr-orphan:") == {}
    assert client.jobs([4_000_000]) == {}


def test_the_state_of_a_job_is_told(slurm: Cluster, client: Slurm, tmp_path: Path) -> None:
    name = "vr-0123abcd:comparisons/no weights|é/iteration-1/train"
    options = ["--nodes=2", "--time=0-22:03:00", f"--job-name='{name}'", "--begin=now+3600"]
    before = time.time()
    waiting = client.submit(script(tmp_path, "sleep 60", *options))
    running = client.submit(script(tmp_path, "sleep 60", *options[:-1], name="b"))
    slurm.wait_until(lambda: client.jobs([running])[running].state == "RUNNING")
    found = client.named("vr-0123abcd:")
    assert list(found) == [name]
    waits, runs = found[name]
    assert (waits.id, waits.state, waits.reason) == (waiting, "PENDING", "BeginTime")
    assert waits.nodes == ""
    assert waits.starts is not None
    assert 3500 < waits.starts - before < 3700
    assert (runs.id, runs.restarts) == (running, 0)
    assert runs.limit_seconds == 22 * 3600 + 3 * 60
    assert runs.nodes.startswith("node[")
    assert runs.seconds is not None
    assert 0 <= runs.seconds <= time.time() - before + 1
    client.cancel([waiting, running])
    slurm.wait_until(lambda: not any(one.alive for one in client.jobs([waiting, running]).values()))
    assert {one.state for one in client.jobs([waiting, running]).values()} == {"CANCELLED"}
    client.cancel([waiting, running, 4_000_000])


def test_a_requeued_job_counts_its_restarts(slurm: Cluster, client: Slurm, tmp_path: Path) -> None:
    body = '[[ ${SLURM_RESTART_COUNT:-0} == 1 ]] || { scontrol requeue "$SLURM_JOB_ID"; sleep 60; }'
    number = client.submit(script(tmp_path, body, "--requeue"))
    slurm.wait_until(lambda: client.jobs([number])[number].state == "COMPLETED")
    assert client.jobs([number])[number].restarts == 1


def test_the_shape_of_the_job_one_sits_in_is_not_handed_on(slurm: Cluster, tmp_path: Path) -> None:
    inside = {"SLURM_JOB_ID": "1", "SLURM_MEM_PER_NODE": "123", "GREETING": "kept"}
    filters = {"SQUEUE_STATES": "FAILED", "SLURM_TIME_FORMAT": "relative"}
    client = Slurm({**slurm.environment, **inside, **filters})
    number = client.submit(script(tmp_path, f"env > {tmp_path}/env"))
    slurm.wait_until(lambda: client.jobs([number])[number].state == "COMPLETED")
    job = (tmp_path / "env").read_text().splitlines()
    assert "SLURM_MEM_PER_NODE=123" not in job
    assert not any(line.startswith("SLURM_TIME_FORMAT") for line in job)
    assert f"SLURM_JOB_ID={number}" in job
    assert "GREETING=kept" in job


def test_variables_of_the_shell_change_nothing_that_a_script_asks_for(
    slurm: Cluster, tmp_path: Path
) -> None:
    shell = {"SBATCH_TIMELIMIT": "7", "SBATCH_JOB_NAME": "other", "SBATCH_PARTITION": "nowhere"}
    client = Slurm({**slurm.environment, **shell})
    asked = script(tmp_path, "true", "--time=33", "--job-name=own", "--begin=now+3600")
    assert "in partition main" in client.test(asked)
    number = client.submit(asked)
    state = client.jobs([number])[number]
    client.cancel([number])
    assert (state.name, state.limit_seconds) == ("own", 33 * 60)


def test_a_dead_controller_is_one_clear_error(own_slurm: Cluster, tmp_path: Path) -> None:
    client = Slurm(own_slurm.environment)
    number = client.submit(script(tmp_path, "sleep 60"))
    assert client.available()
    own_slurm.stop_controller()
    asked = script(tmp_path, "true", name="other")
    for ask in (
        *(lambda: client.submit(asked), lambda: client.test(asked), lambda: client.named("vr-")),
        *(lambda: client.jobs([number]), lambda: client.cancel([number])),
    ):
        with pytest.raises(StageError, match="controller does not answer"):
            ask()
    assert not client.available()
    own_slurm.start_controller()
    own_slurm.wait_until(client.available)
    own_slurm.wait_until(lambda: client.jobs([number])[number].state == "RUNNING")


def test_a_host_that_knows_no_cluster_says_so_with_slurms_words(
    slurm: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "slurm.conf").write_text("Nonsense=1\n")
    client = Slurm({**slurm.environment, "SLURM_CONF": str(tmp_path / "slurm.conf")})
    with pytest.raises(StageError, match=r"does not answer \(scontrol: \w+: .*Nonsense"):
        client.jobs([1])


def test_a_host_without_slurm_says_so(tmp_path: Path) -> None:
    client = Slurm({"PATH": str(tmp_path)})
    assert client.absent is not None
    assert "no Slurm on this host" in client.absent
    with pytest.raises(StageError, match="no Slurm on this host"):
        client.jobs([1])
