"""The tests that need a GPU run where there is none, but for what only a GPU has; nothing of a GPU
is shown by that. It keeps them from falling behind the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def gpu_tests(*options: str) -> subprocess.CompletedProcess[str]:
    """`python -m pytest tests/gpu` with `options`, as a user starts it."""
    command = [sys.executable, "-m", "pytest", "tests/gpu", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def report(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


@pytest.mark.timeout(900)
def test_every_test_is_rehearsed_or_named_as_needing_the_gpu(tmp_path: Path) -> None:
    told = gpu_tests("--rehearse", f"--gpu-report={tmp_path / 'report.json'}")
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    assert "Nothing about a GPU was shown" in told.stdout
    found = report(tmp_path / "report.json")
    assert found["outcome"] == "passed"
    assert "nothing about a GPU" in found["shows"]
    outcomes = Counter(test["outcome"] for test in found["tests"].values())
    assert outcomes.keys() == {"rehearsed", "needs the GPU"}, outcomes
    for name, test in found["tests"].items():
        if test["outcome"] == "needs the GPU":
            assert "needs the GPU: " in test["said"], name
    # Programs, each counted once whatever its parameters.
    by_program = {(name.split("[")[0], test["outcome"]) for name, test in found["tests"].items()}
    rehearsed = {name for name, outcome in by_program if outcome == "rehearsed"}
    assert len(rehearsed) > 0.5 * len({name for name, _ in by_program}), by_program


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="there is a GPU: the tests themselves run"
)
def test_without_a_gpu_they_are_one_failure_that_says_so(tmp_path: Path) -> None:
    told = gpu_tests(f"--gpu-report={tmp_path / 'report.json'}")
    assert told.returncode == 1
    assert "1 failed" in told.stdout and "passed" not in told.stdout
    assert "torch sees no GPU. Nothing was tested" in told.stdout
    found = report(tmp_path / "report.json")
    assert found["outcome"].startswith("failed")
    assert [test["outcome"] for test in found["tests"].values()] == ["failed"]
    assert "torch sees no GPU" in found["reason"]


def test_a_run_that_is_cut_off_leaves_what_was_measured(tmp_path: Path) -> None:
    """By a test that ends the process: what came before it stays, and it is named."""
    file = tmp_path / "report.json"
    kill = tmp_path / "killing.py"
    kill.write_text(
        "import os\n"
        "def pytest_runtest_call(item):\n"
        "    if 'False' in item.name:\n"
        "        os._exit(9)\n"
    )
    command = [sys.executable, "-m", "pytest", "tests/gpu/test_head.py", "--rehearse"]
    options = [f"--gpu-report={file}", "-p", "killing", "-p", "no:cacheprovider"]
    told = subprocess.run(
        command + options,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 9
    found = report(file)
    assert found["outcome"] == "cut off"
    first, second = found["tests"].values()
    assert first["outcome"] == "rehearsed" and first["largest_difference"] > 0
    assert second["outcome"] == "cut off"
