"""Runs of the toy task through `submit`, on a real Slurm of virtual nodes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_vr.cluster.jobs import slurm_prefix
from tests.algorithm.tiny_run import ROOT, command, environment
from tests.slurm.cluster import Cluster
from tests.slurm.toy_run import (
    SHAPES,
    call,
    check_same_tables,
    finish,
    live_jobs,
    logs,
    submit,
)

# Long enough for something to happen in the middle.
LONG = ("train.steps=120", "train.optimizer.warmup_steps=4")


@pytest.fixture(autouse=True)
def _no_jobs_left(slurm: Cluster) -> Iterator[None]:
    """A test that fails must not leave its jobs to the next one."""
    yield
    for line in live_jobs(slurm):
        slurm.run("scancel", line.split()[0])
    slurm.wait_until(lambda: not live_jobs(slurm), 120)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same run by `megatron-vr run`: two ranks on this host, no Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    done = subprocess.run(
        command(folder, *SHAPES, "parallel.processes=2", *LONG),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    yield folder


def test_a_run_through_a_killed_rank_and_a_lost_node_has_the_tables_of_an_undisturbed_one(
    slurm: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    rows = submit(slurm, folder, *LONG)
    assert {row["state"] for row in rows} == {"done", "submitted"}
    ids = {row["job"]: row["id"] for row in rows}
    sampling, training = folder / "iteration-1/sample-posterior", folder / "iteration-1/train"

    slurm.wait_until(lambda: any(sampling.glob("part-*")), 200)
    killed = kill_a_rank(slurm, ids["iteration-1/sample-posterior"])
    slurm.wait_until(lambda: any(training.glob("checkpoints/step-*[05]")), 240)
    lost = first_node(slurm, ids["iteration-1/train"])
    slurm.node_down(lost)
    try:
        finish(slurm)
    finally:
        slurm.node_up(lost)

    check_same_tables(folder, undisturbed)
    sampled = log_of(folder, "iteration-1.sample-posterior", ids)
    assert f"node {killed}" in sampled and "starts again (1 of" in sampled, sampled
    assert restarts(slurm, ids["iteration-1/train"]) == 1, logs(folder)
    again = submit(slurm, folder, *LONG)
    assert {row["state"] for row in again} == {"done"}


def kill_a_rank(slurm: Cluster, job: int) -> str:
    """`kill -9` one rank of the job; the name of its node."""
    for process in psutil.process_iter():
        try:
            found = process.environ()
        except psutil.Error:
            continue
        if found.get("SLURM_JOB_ID") == str(job) and found.get("RANK") == "1":
            os.kill(process.pid, signal.SIGKILL)
            return found["SLURMD_NODENAME"]
    raise AssertionError(f"job {job} has no rank 1; {live_jobs(slurm)}")


def first_node(slurm: Cluster, job: int) -> str:
    return slurm.run("squeue", "-h", "-j", str(job), "-o", "%B").stdout.strip()


def restarts(slurm: Cluster, job: int) -> int:
    told = slurm.run("scontrol", "-o", "show", "job", str(job)).stdout
    return int(told.split("Restarts=")[1].split()[0])


def log_of(folder: Path, stage: str, ids: dict[str, int]) -> str:
    return (folder / f"slurm/logs/{stage}-{ids[stage.replace('.', '/')]}.log").read_text()


@pytest.mark.timeout(1500)
def test_a_training_that_meets_its_time_limit_saves_and_goes_on(
    slurm: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # Slurm looks at limits every half minute: the signal comes 5 to 35 s after the start.
    long = ("policy.steps=1200", "policy.optimizer.warmup_steps=4", "policy.save_every=100000")
    limit = ("cluster.stages={sft: {time: '1'}}", "cluster.save_seconds=25")
    ids = {r["job"]: r["id"] for r in submit(slurm, folder, "--until", "sft", *long, *limit)}
    job = ids["iteration-0/sft"]
    log = folder / f"slurm/logs/iteration-0.sft-{job}.log"
    saved = re.compile(r"is saved after step [1-9]\d* of 1200")
    slurm.wait_until(lambda: log.exists() and bool(saved.search(log.read_text())), 800)
    # A busy machine would meet it again and again, a few steps further each time.
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=30")
    finish(slurm, 600)
    sft = folder / "iteration-0/sft"
    assert (sft / "_DONE.json").exists(), logs(folder)
    assert restarts(slurm, job) >= 1, logs(folder)
    assert "the time limit is near" in log.read_text()
    steps = [json.loads(line)["step"] for line in (sft / "metrics.jsonl").open()]
    assert steps == sorted(set(steps)) and steps[-1] == 1200, "a step was done twice, or lost"


def test_a_stage_that_fails_takes_those_behind_it_off_the_queue(
    slurm: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    wrong = ("policy.optimizer.learning_rate=1e30", "policy.steps=40")
    rows = submit(slurm, folder, "--until", "iteration-0/evaluate", *wrong)
    finish(slurm)
    assert not (folder / "iteration-0/export-policy").exists()
    failed = log_of(folder, "iteration-0.sft", {row["job"]: row["id"] for row in rows})
    assert "gradient norm nan" in failed and "failed with exit code 1" in failed.splitlines()[-1]
    states = slurm.run("squeue", "-h", "-t", "all", "-o", "%j %T").stdout
    for behind in ("iteration-0/export-policy", "iteration-0/evaluate"):
        assert f"{slurm_prefix(folder)}{behind} CANCELLED" in states


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ("cluster.train={nodes: 2, gpus: 9}", "configuration"),
        ("cluster.cpu={partition: nowhere}", "invalid partition"),
        ("cluster.score={nodes: 99, gpus: 1}", "Node"),
    ],
)
def test_what_slurm_refuses_is_told_in_its_own_words_and_nothing_is_queued(
    slurm: Cluster, tmp_path: Path, wish: str, words: str
) -> None:
    done = call(slurm, "submit", tmp_path / "run", wish)
    assert done.returncode != 0
    assert words in done.stderr and "Slurm refuses" in done.stderr, done.stderr
    assert not any(slurm_prefix(tmp_path / "run") in line for line in live_jobs(slurm))
    assert not (tmp_path / "run/slurm/jobs.json").exists()
    assert not (tmp_path / "run/iteration-0").exists(), "the base was made for nothing"


def test_what_was_cancelled_is_submitted_anew_and_not_taken_for_queued(
    slurm: Cluster, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ("--until", "sft", "policy.steps=2000", "policy.optimizer.warmup_steps=4")
    first = {row["job"]: row["id"] for row in submit(slurm, folder, *words)}["iteration-0/sft"]
    slurm.wait_until(lambda: slurm.state(first) == "RUNNING")
    slurm.run("scancel", str(first))
    second = {row["job"]: row for row in submit(slurm, folder, *words)}["iteration-0/sft"]
    assert second["state"] == "submitted" and second["id"] > first
    slurm.run("scancel", str(second["id"]))


def test_a_drained_node_is_no_reason_to_refuse_what_slurm_queues(
    own_slurm: Cluster, tmp_path: Path
) -> None:
    own_slurm.run("scontrol", "update", "nodename=node1", "state=drain", "reason=test")
    done = call(own_slurm, "submit", tmp_path / "run", "--until", "sft")
    assert done.returncode == 0, done.stderr
    assert "cannot begin as things are now, but Slurm takes it" in done.stderr
    (job,) = live_jobs(own_slurm)
    assert "iteration-0/sft PENDING" in job
