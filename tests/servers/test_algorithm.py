"""The whole algorithm with a real vLLM instead of the embedded engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from megatron_vr.convert.random_init import write_random_model
from megatron_vr.problems.toy_tokenizer import make_tokenizer
from tests.algorithm.tiny_run import run
from tests.servers.running import RunningServer

SHAPE = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 32,
    "ffn_hidden_size": 64,
    "max_positions": 96,
    "tied": False,
}


def test_two_iterations_with_vllm_trained_by_two_processes(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    """The server starts with other weights; each stage brings in those that it needs."""
    write_random_model(SHAPE, make_tokenizer(), tmp_path / "other", 77)
    server = start_server("vllm", tmp_path / "other", max_model_len=96)
    shape = ", ".join(f"{key}: {str(value).lower()}" for key, value in SHAPE.items())
    overrides = [
        f"model.random={{{shape}}}",
        "run.iterations=2",
        "comparisons={}",
        "engine.kind=vllm",
        f"engine.servers.urls=[{server.url}]",
        "engine.servers.concurrency=64",
        "parallel.processes=2",
    ]
    ended = run(tmp_path / "run", *overrides)
    assert ended.returncode == 0, ended.stderr[-6000:]
    for t in (1, 2):
        marker = tmp_path / "run" / f"iteration-{t}" / "score" / "_DONE.json"
        told = json.loads(marker.read_text())["summary"]
        assert told["traces"] > 0
        assert told["engine_gap_largest"] < 1e-4, f"iteration {t}: {told}"
    again = run(tmp_path / "run", *overrides)
    assert again.returncode == 0 and "is ready" not in again.stderr, "a done run asks no server"
