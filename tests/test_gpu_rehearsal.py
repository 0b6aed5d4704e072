"""The tests that need a GPU run where there is none, but for what only a GPU has; nothing of a GPU
is shown by that. It keeps them from falling behind the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.gpu.limits import SECONDS_OF_A_TEST, Limits

ROOT = Path(__file__).parents[1]
BESIDE = ("-n", "1", "--dist", "loadfile")
# The head's tests, of which one is told to fail and the next ends its process.
FAULTS = """
import os
def pytest_runtest_call(item):
    if "True" in item.name and os.environ["FAULTS"] == "both":
        assert "what was computed" == "what was wanted", "they differ"
    if "False" in item.name:
        os._exit(9)
"""


def gpu_tests(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m pytest tests/gpu` with `options`, as a user starts it; one thread is the cheapest
    for models this small."""
    where = [] if any(option.startswith("tests/") for option in options) else ["tests/gpu"]
    command = [sys.executable, "-m", "pytest", *where, "-p", "no:cacheprovider", *options]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=850, check=False
    )


def faulty(folder: Path, faults: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of the head's tests with `FAULTS`."""
    (folder / "faults.py").write_text(FAULTS)
    file = folder / "report.json"
    chosen = ("tests/gpu/test_head.py", "--rehearse", f"--gpu-report={file}", "-p", "faults")
    # What a process leaves that ends so.
    environment = {"PYTHONPATH": str(folder), "TMPDIR": str(folder), "FAULTS": faults}
    told = gpu_tests(*chosen, *options, **environment)
    return told.returncode, report(file)


def report(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a rehearsal of all tests printed, and its report."""
    file = tmp_path_factory.mktemp("rehearsal") / "report.json"
    told = gpu_tests("--rehearse", f"--gpu-report={file}")
    assert told.returncode == 0, told.stdout[-4000:] + told.stderr[-2000:]
    return told.stdout, report(file)


def test_every_test_is_rehearsed_or_named_as_needing_the_gpu(
    rehearsed: tuple[str, dict[str, Any]],
) -> None:
    printed, found = rehearsed
    assert "Nothing about a GPU was shown" in printed
    assert found["outcome"] == "passed"
    assert "nothing about a GPU" in found["shows"]
    outcomes = Counter(test["outcome"] for test in found["tests"].values())
    assert outcomes.keys() == {"rehearsed", "needs the GPU"}, outcomes
    for name, test in found["tests"].items():
        if test["outcome"] == "needs the GPU":
            assert test["said"].startswith("Skipped: needs the GPU: "), name
    # Programs, each counted once whatever its parameters.
    by_program = {(name.split("[")[0], test["outcome"]) for name, test in found["tests"].items()}
    programs = {name for name, outcome in by_program if outcome == "rehearsed"}
    assert len(programs) > 0.5 * len({name for name, _ in by_program}), by_program


def test_what_everything_stands_on_is_tested_first(rehearsed: tuple[str, dict[str, Any]]) -> None:
    """A run without enough time loses the trainings."""
    _, found = rehearsed
    files = list(dict.fromkeys(Path(name.split("::")[0]).stem for name in found["tests"]))
    first = ["start", "layers", "packs", "head", "weight_gradients", "fp8"]
    assert files[:6] == [f"test_{name}" for name in first]
    assert len(files) == len(list((ROOT / "tests" / "gpu").glob("test_*.py")))


@pytest.mark.skipif(
    "__import__('torch').cuda.is_available()", reason="there is a GPU: the tests themselves run"
)
@pytest.mark.parametrize("beside", [(), BESIDE], ids=["one process", "workers"])
def test_without_a_gpu_they_are_one_failure_that_says_so(
    beside: tuple[str, ...], tmp_path: Path
) -> None:
    told = gpu_tests(f"--gpu-report={tmp_path / 'report.json'}", *beside)
    assert told.returncode == 1
    assert "1 failed" in told.stdout and "passed" not in told.stdout
    assert "torch sees no GPU. Nothing was tested" in told.stdout
    found = report(tmp_path / "report.json")
    assert found["outcome"].startswith("failed")
    assert [test["outcome"] for test in found["tests"].values()] == ["failed"]
    assert "torch sees no GPU" in found["reason"]


def test_a_run_that_is_cut_off_leaves_what_was_measured(tmp_path: Path) -> None:
    """By a test that ends the process: what came before it stays, and it is named."""
    code, found = faulty(tmp_path, "one")
    assert code == 9
    assert found["outcome"] == "cut off"
    first, second = found["tests"].values()
    assert first["outcome"] == "rehearsed" and first["largest_difference"] > 0
    assert second["outcome"] == "cut off"


def test_the_report_says_why_a_test_failed_and_none_that_ended_a_worker_runs_again(
    tmp_path: Path,
) -> None:
    code, found = faulty(tmp_path, "both", *BESIDE)
    assert code == 1
    failed, ended, rest = found["tests"].values()
    assert failed["outcome"] == ended["outcome"] == "failed"
    assert failed["said"].startswith("AssertionError: they differ")
    assert any("what was computed" in line for line in failed["trace"])
    assert "'gw0' crashed" in ended["said"] and "its process ended after" in ended["said"]
    assert rest["outcome"] == "needs the GPU"


def test_a_test_may_take_what_is_left_of_all_the_time_and_begins_once(tmp_path: Path) -> None:
    now = time.monotonic()
    early, late, over, none = (
        Limits(began, seconds, tmp_path)
        for began, seconds in ((now, 1000), (now - 970, 1000), (now - 1001, 1000), (now, None))
    )
    assert early.of_a_test() == none.of_a_test() == SECONDS_OF_A_TEST
    assert 0 < late.of_a_test() <= 30
    assert over.fault("a/test.py::one") == "not run: --gpu-seconds 1000 are over"
    assert late.fault("a/test.py::one") is None
    assert Limits.of(early.plain()).fault("a/test.py::one") == (
        "not run again: the process in which it ran before ended"
    )
    assert none.fault("a/test.py::another") is None
