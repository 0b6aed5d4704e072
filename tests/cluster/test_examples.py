"""The shipped settings of 4B to 32B: they fit what they ask for, and make a chain of jobs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from megatron_vr.cli import app

EXAMPLES = sorted(Path("examples").glob("qwen*.yaml"))
CHAIN = [
    *("iteration-0/problems-train", "iteration-0/problems-test", "iteration-0/base"),
    *("iteration-0/sft", "iteration-0/export-policy", "iteration-0/evaluate"),
    *("iteration-1/posterior", "iteration-1/export-posterior", "iteration-1/sample-posterior"),
    *("iteration-1/score", "iteration-1/answer", "iteration-1/weigh", "iteration-1/train"),
    *("iteration-1/export-policy", "iteration-1/evaluate", "benchmarks"),
]


def test_there_are_examples_of_every_size() -> None:
    assert [path.stem for path in EXAMPLES] == [
        *("qwen2.5-32b-fp8", "qwen2.5-32b", "qwen2.5-7b", "qwen3-4b", "qwen3-8b"),
    ]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_fits_its_gpus_and_its_time_limits(example: Path) -> None:
    ended = CliRunner().invoke(app, ["plan", str(example), "--json"])
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_becomes_a_chain_of_jobs(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no Slurm
    words = ["submit", str(example), f"run.folder={tmp_path / 'run'}", "--dry-run", "--json"]
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 0, ended.output
    rows = {row["job"]: row for row in json.loads(ended.stdout)}
    assert list(rows) == CHAIN
    nodes = yaml.safe_load(example.read_text())["cluster"]["train"]["nodes"]
    for name, row in rows.items():
        if row["state"] == "made here":
            continue
        script = Path(row["script"]).read_text()
        assert f"#SBATCH --nodes={row['nodes']}\n" in script
        assert ("--gpus-per-node=8" in script) == (row["gpus"] == 8), name
    assert rows["iteration-1/train"]["nodes"] == nodes
    assert rows["iteration-1/train"]["after"], "it waits for nothing"
