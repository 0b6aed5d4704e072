"""The demo's configuration made small enough for a test, and the command that runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from megatron_vr.cli import app

ROOT = Path(__file__).parents[2]
TOY = ROOT / "examples" / "toy.yaml"

SMALL = [
    "problems.train=[{kind: toy, split: train, seed: 1, count: 48, references: 32}]",
    "problems.validation=[]",
    "problems.test=[{kind: toy, split: test, seed: 1, count: 12}]",
    "model.random={hidden_size: 32, layers: 2, heads: 2, kv_heads: 1, head_dim: 32, "
    "ffn_hidden_size: 64}",
    "policy.steps=40",
    "posterior.train.steps=40",
    "train.steps=12",
    "policy.optimizer.warmup_steps=4",
    "posterior.train.optimizer.warmup_steps=4",
    "train.optimizer.warmup_steps=4",
    "policy.batch_size=16",
    "posterior.train.batch_size=16",
    "train.batch_size=16",
    "policy.save_every=5",
    "posterior.train.save_every=5",
    "train.save_every=5",
    "engine.part_size=32",
    "scoring.part_size=32",
    "parallel.processes=1",
    "report.tensorboard=false",
    "data.no_correct_trace=reference",
]


def command(folder: Path, *overrides: str, verb: str = "run") -> list[str]:
    """The command line of a small run in `folder`."""
    own = [f"run.folder={folder}", *SMALL, *overrides]
    return [sys.executable, "-m", "megatron_vr", verb, str(TOY), *own]


def environment() -> dict[str, str]:
    """The test's environment with one thread, so that sums have one order.

    Without torch's compiler: nothing is compiled on a CPU, but Megatron's decorators would load it,
    which takes each process longer than all else that it does.
    """
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1"}
    return kept | own


def run(folder: Path, *overrides: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    """Run to the end; standard output and error as text."""
    return subprocess.run(
        command(folder, *overrides, verb=verb),
        capture_output=True,
        text=True,
        env=environment(),
        timeout=600,
        cwd=ROOT,
    )


def ask(folder: Path, *overrides: str, verb: str = "run") -> Result:
    """The same in this process, for what ends before a model is needed."""
    return invoked(*command(folder, *overrides, verb=verb)[3:])


def invoked(*words: str) -> Result:
    """`megatron-vr WORDS` in this process; it ends by itself or as commands do, with a code."""
    ended = CliRunner().invoke(app, words)
    assert ended.exception is None or isinstance(ended.exception, SystemExit), ended.exception
    return ended
