"""Ranks started on this host: their exit codes, and that none outlives its launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.algorithm.tiny_run import ROOT, command, environment, run


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


def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    launcher = subprocess.Popen(
        command(folder, "parallel.processes=2", "policy.steps=100000"),
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


def test_a_failing_rank_ends_the_run_with_its_exit_code_and_one_message(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run(folder, "parallel.processes=2", "policy.micro_batch_tokens=5", "comparisons={}")
    assert done.returncode == 1
    assert "micro_batch_tokens" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
