"""Ranks started on this host: their exit codes, who is named, and that none is left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from megatron_vr.parallel.outcome import Failure, judge
from tests.algorithm.tiny_run import ROOT, command, environment, run
from tests.parallel.launch import run_ranks
from tests.parallel.two_nodes import work_on

# Of every run here: the sampling after a training is small, too.
RUN = ("comparisons={}", "evaluation.samples=2", "evaluation.k=1")


@pytest.fixture(scope="module")
def trained(ready: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the settings SHORT, up to the posterior that samples."""
    folder = shutil.copytree(ready, tmp_path_factory.mktemp("trained") / "run")
    stages = [
        *("iteration-0/sft", "iteration-0/export-policy", "iteration-0/evaluate"),
        *("iteration-1/posterior", "iteration-1/export-posterior"),
    ]
    run_ranks(work_on, 1, folder, stages, SHORT)
    return folder


def processes_of(folder: Path) -> list[int]:
    """Living processes that name `folder` on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in words and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def wait_until(happened: object, seconds: float, told: str) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def start(folder: Path, *overrides: str, verb: str = "run") -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, *overrides, verb=verb),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(where: Path, pattern: str, writer: subprocess.Popen[str]) -> None:
    """Until `writer` has made such a file in `where`."""
    deadline = time.monotonic() + 240
    while not list(where.glob(pattern)):
        assert writer.poll() is None, f"ended before {where}: {writer.communicate()[1]}"
        assert time.monotonic() < deadline, f"{where} has no {pattern}"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=240)
    return process.returncode, errors


def test_no_rank_outlives_a_killed_launcher(folder: Path) -> None:
    launcher = subprocess.Popen(
        command(folder, *RUN, "parallel.processes=2", "policy.steps=100000"),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begun = folder / "iteration-0" / "sft" / "metrics.jsonl"
    wait_until(begun.exists, 120, "the ranks never began to train")
    assert len(processes_of(folder)) == 3
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    wait_until(lambda: not processes_of(folder), 30, "ranks outlived their launcher")


def test_a_failing_rank_ends_the_run_with_its_exit_code_and_one_message(folder: Path) -> None:
    done = run(folder, *RUN, "parallel.processes=2", "policy.micro_batch_tokens=5")
    assert done.returncode == 1
    assert "micro_batch_tokens" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr


# Trainings of a few steps; samples in so many parts that a signal falls between two.
SHORT = (
    *RUN,
    "policy.steps=6",
    "posterior.train.steps=6",
    "train.steps=6",
    "engine.part_size=4",
    "scoring.part_size=1",
)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_stops_a_run_and_the_same_command_goes_on(
    trained: Path, tmp_path: Path, processes: int
) -> None:
    folder = shutil.copytree(trained, tmp_path / "run")
    overrides = (*SHORT, f"parallel.processes={processes}")
    for signum, stage, parts, saved in (
        (signal.SIGTERM, "sample-posterior", "", "the generations at hand of"),
        (signal.SIGUSR1, "score", "policy", "a part of"),
    ):
        place = folder / "iteration-1" / stage
        launcher = start(folder, *overrides)
        wait_for(place / parts, "part-*.parquet", launcher)
        launcher.send_signal(signum)
        code, errors = ended(launcher)
        assert code == 75, errors
        assert "Traceback" not in errors
        told = [line for line in errors.splitlines() if "received" in line]
        assert len(told) == 1, errors
        assert told[0].startswith(f"megatron-vr: {signum.name} received: stopped after {saved} ")
        assert not (place / "_DONE.json").exists(), "the signal came too late to show anything"
        assert not processes_of(folder)
    finished = run(folder, *overrides)
    assert finished.returncode == 0, finished.stderr
    assert (folder / "results.json").exists()


def test_a_training_survives_a_signal_and_a_rank_that_is_killed_and_named_while_it_saves(
    folder: Path,
) -> None:
    steps = 60
    overrides = (
        *("--iteration=0", *RUN, "parallel.processes=2"),
        *(f"policy.steps={steps}", "policy.save_every=1"),
    )
    sft = folder / "iteration-0" / "sft"

    launcher = start(folder, *overrides, verb="sft")
    wait_for(sft, "metrics.jsonl", launcher)
    launcher.send_signal(signal.SIGUSR1)
    code, errors = ended(launcher)
    assert code == 75, errors
    (saved,) = (sft / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert f"saved after step {step} of {steps}" in errors, errors

    launcher = start(folder, *overrides, verb="sft")
    wait_for(sft / "checkpoints", f"step-{step + 2:06d}*", launcher)
    wait_for(sft / "checkpoints", "step-*.tmp", launcher)
    ranks = psutil.Process(launcher.pid).children()
    victim = next(rank for rank in ranks if rank.environ().get("RANK") == "1")
    victim.send_signal(signal.SIGKILL)
    code, errors = ended(launcher)
    assert code == 1
    assert f"megatron-vr: rank 1 (pid {victim.pid}) was killed by SIGKILL;" in errors, errors
    assert not processes_of(folder)

    finished = run(folder, *overrides, verb="sft")
    assert finished.returncode == 0, finished.stderr
    lines = (sft / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line)["step"] for line in lines]
    assert told == list(range(10, steps + 1, 10)), f"each tenth step once: {told}"
    assert [path.name for path in (sft / "checkpoints").iterdir()] == [f"step-{steps:06d}"]


def test_seeds_stop_too(ready: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ready, folder / "seed-1")
    seeds = start(folder, *RUN, "policy.steps=100000", "--seeds", "1,2")
    wait_for(folder / "seed-1" / "iteration-0" / "sft", "metrics.jsonl", seeds)
    seeds.send_signal(signal.SIGTERM)
    code, errors = ended(seeds)
    assert code == 75, errors
    assert not (folder / "seed-2").exists()


KILLED, FAILED, SAVED, ODD = -9, 1, 75, 7


@pytest.mark.parametrize(
    ("codes", "stopping", "code", "told"),
    [
        ([], False, 0, None),
        ([(0, FAILED, 10)], False, 1, None),
        ([(0, FAILED, 12), (1, 2, 10)], False, 2, None),
        ([(0, FAILED, 10), (1, KILLED, 10)], False, 1, "rank 1 (pid 101) was killed by SIGKILL;"),
        ([(0, FAILED, 10), (1, KILLED, 40)], False, 1, None),
        ([(1, ODD, 10)], False, 7, "rank 1 (pid 101) ended with exit code 7;"),
        ([(1, -60, 10)], False, 1, "rank 1 (pid 101) was killed by signal 60;"),
        ([(0, SAVED, 10), (1, SAVED, 10)], True, 75, None),
        ([(0, SAVED, 10)], False, 75, None),
        ([(0, SAVED, 10), (1, KILLED, 40)], True, 75, None),
        ([(0, FAILED, 11), (1, SAVED, 10)], True, 75, None),
        ([(0, FAILED, 10), (1, SAVED, 10)], True, 1, None),
        ([(1, -signal.SIGTERM, 10)], True, 75, None),
        ([(1, -signal.SIGTERM, 10)], False, 1, "rank 1 (pid 101) was killed by SIGTERM;"),
    ],
    ids=[
        "all done",
        "a rank failed and said why",
        "the earlier failure counts",
        "in one second the kill came first",
        "the agent killed what did not end",
        "a code without a message",
        "a signal without a name",
        "asked to stop",
        "one rank was asked to stop",
        "saved, and the agent killed another",
        "saved, and another missed it",
        "failed while it was to stop",
        "stopped before it handled signals",
        "killed though nobody was to stop",
    ],
)
def test_the_first_failure_counts(
    codes: list[tuple[int, int, int]], stopping: bool, code: int, told: str | None
) -> None:
    outcome = judge([Failure(rank, 100 + rank, c, at) for rank, c, at in codes], stopping)
    assert outcome.code == code
    assert (outcome.line or "").startswith(told or "")
    assert (outcome.line is None) == (told is None)
