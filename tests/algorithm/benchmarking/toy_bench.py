"""A small model that was not trained, toy questions as a benchmark, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from typer.testing import Result

from megatron_vr.convert.random_init import write_random_model
from megatron_vr.problems.source_settings import ToySource
from megatron_vr.problems.toy_source import toy_problems
from megatron_vr.problems.toy_tokenizer import make_tokenizer
from tests.algorithm.tiny_run import ROOT, environment, invoked

SHAPE = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 2,
    "head_dim": 32,
    "ffn_hidden_size": 64,
    "max_positions": 1024,
    "tied": False,
}
SETTINGS = ("format=toy", "sampling.max_new_tokens=24", "sampling.temperature=1.0", "greedy=true")


def write_model(folder: Path, seed: int = 1) -> Path:
    write_random_model(SHAPE, make_tokenizer(), folder, seed)
    return folder


def toy_rows(count: int, seed: int) -> list[dict[str, Any]]:
    source = ToySource(kind="toy", count=count, split="test", seed=seed)
    return [
        {
            "id": f"{seed}-{number}",
            "question": problem.question,
            "answer": problem.answer,
            "kind": problem.kind,
            "parameters": problem.parameters,
            "band": problem.band,
        }
        for number, problem in enumerate(toy_problems(source))
    ]


def write_rows(file: Path, count: int = 12, seed: int = 1) -> Path:
    lines = [json.dumps(row) for row in toy_rows(count, seed)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def command(target: Path | str, *words: str) -> list[str]:
    return [sys.executable, "-m", "megatron_vr", "evaluate", str(target), *words]


def ask(target: Path | str, *words: str) -> Result:
    """The command in this process, with one thread as `evaluate` has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return invoked("evaluate", str(target), *words)
    finally:
        torch.set_num_threads(threads)


def evaluate(target: Path | str, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        command(target, *words),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        cwd=ROOT,
    )
