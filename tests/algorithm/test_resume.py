"""A run that is killed in the middle of every stage ends with an uninterrupted run's tables."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file

from tests.algorithm.tiny_run import ROOT, command, environment, run

KILLED_STAGES = [
    "iteration-0/problems-train",
    "iteration-0/base",
    "iteration-0/sft",
    "iteration-0/export-policy",
    "iteration-0/evaluate",
    "iteration-1/posterior",
    "iteration-1/sample-posterior",
    "iteration-1/score",
    "iteration-1/answer",
    "iteration-1/weigh",
    "iteration-1/train",
    "comparisons/rft/iteration-1/sample-policy",
]


def test_killing_every_stage_loses_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = run(whole)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    for stage in KILLED_STAGES:
        kill_during(killed, stage)
    resumed = run(killed)
    assert resumed.returncode == 0, resumed.stderr
    assert results(killed) == results(whole)
    assert tables(killed).keys() == tables(whole).keys()
    for name, table in tables(whole).items():
        assert tables(killed)[name].equals(table), f"{name} differs after the kills"
    for model in sorted(whole.rglob("model.safetensors")):
        same = killed / model.relative_to(whole)
        expected, found = load_file(model), load_file(same)
        differing = [name for name in expected if not expected[name].equal(found[name])]
        assert not differing, f"{same}: {differing} differ from the uninterrupted run's"


def kill_during(folder: Path, stage: str) -> None:
    """Start the run and `kill -9` it once `stage` has begun; it may also just have ended."""
    process = subprocess.Popen(
        command(folder),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    begun = folder / stage / "fingerprint.json"
    while not begun.exists():
        if process.poll() is not None:
            raise AssertionError(f"the run ended before {stage} began: {process.communicate()[1]}")
        time.sleep(0.01)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def results(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "results.json").read_text()))


def tables(folder: Path) -> dict[str, pa.Table]:
    """Every part by its path, without the clock's column."""
    found = {}
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        kept = [name for name in table.column_names if name != "seconds"]
        found[str(path.relative_to(folder))] = table.select(kept)
    return found
