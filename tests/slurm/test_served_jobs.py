"""Sampling as a job: real vLLM servers on two nodes, and one client between them."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import psutil
import pytest

from tests.servers.environment import python_of, why_missing
from tests.slurm.cluster import Cluster
from tests.slurm.toy_run import finish, logs, submit

MODEL = (
    "model.random={hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 32, "
    "ffn_hidden_size: 64, max_positions: 96, tied: false}"
)


def test_servers_start_on_both_nodes_answer_one_client_and_leave_with_it(
    slurm: Cluster, tmp_path: Path
) -> None:
    program = python_of("vllm")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail(why_missing("vllm"), pytrace=False)
        warnings.warn(why_missing("vllm"), stacklevel=1)
        pytest.skip(why_missing("vllm"))
    launch = {"program": str(program), "gpus": 0, "dtype": "float32", "context_length": 96}
    launch |= {"environment": {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}}
    folder = tmp_path / "run"
    submit(
        slurm,
        folder,
        *("--until", "iteration-0/evaluate", MODEL, "engine.kind=vllm"),
        f"engine.servers.launch={json.dumps(launch)}",
        *("engine.servers.pulse_seconds=1", "engine.servers.concurrency=4"),
        "cluster.stages={evaluate: {memory: 4G}}",
    )
    finish(slurm, 400)
    done = folder / "iteration-0/evaluate/_DONE.json"
    assert done.exists(), logs(folder)
    (log,) = (folder / "slurm/logs").glob("iteration-0.evaluate-*.log")
    told = log.read_text()
    started = {line.split()[0] for line in told.splitlines() if " logs to " in line}
    assert len(started) == 2, told
    # Each node's `serve` looks at its own server on loopback, the client by the host's name. The
    # second server may be ready when the first has answered everything.
    ready = {line.split()[0] for line in told.splitlines() if "is ready" in line}
    assert ready & started, told
    assert "MEGATRON_VR_API_KEY=" not in told
    assert "done" in told.splitlines()[-1], told
    left = [p.info for p in psutil.process_iter(["cmdline"]) if _serves(p, folder)]
    assert not left, f"the job left {left}"


def _serves(process: psutil.Process, folder: Path) -> bool:
    return any(str(folder) in word for word in process.info["cmdline"] or ())
