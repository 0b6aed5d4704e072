"""Ranks that torchrun started wait for what rank 0 does with rollout servers, and stop with it."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.algorithm.tiny_run import ROOT, command, environment

# A server that never answers: rank 0 stays in the first evaluation.
OVERRIDES = (
    "comparisons={}",
    "policy.steps=6",
    "engine.kind=vllm",
    "engine.servers.urls=[http://127.0.0.1:9]",
    "parallel.processes=2",
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start_ranks(folder: Path) -> list[subprocess.Popen[str]]:
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        subprocess.Popen(
            command(folder, *OVERRIDES),
            env=environment() | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def test_one_that_is_asked_to_stop_takes_the_other_along(tmp_path: Path) -> None:
    begun = tmp_path / "run" / "iteration-0" / "evaluate" / "fingerprint.json"
    for asked in (0, 1):
        ranks = start_ranks(tmp_path / "run")
        try:
            deadline = time.monotonic() + 240
            while not begun.exists():
                assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            time.sleep(3)
            ranks[asked].send_signal(signal.SIGUSR1)
            for rank in ranks:
                errors = rank.communicate(timeout=60)[1]
                assert rank.returncode == 75, errors
                assert "Traceback" not in errors
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        # Without it the next round begins the stage anew.
        begun.unlink()
