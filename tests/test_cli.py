"""What a user sees when something is wrong: one clear message, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from tests.algorithm.tiny_run import ROOT, ask, command, environment, run

GOOD = {"id": "a", "question": "S c8 G c18 W c3", "answer": "D D"}


def source(path: Path) -> str:
    return f"problems.train=[{{kind: file, path: {path}, verifier: toy-grid}}]"


def rows(tmp_path: Path, *content: object) -> Path:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def complaint(done: subprocess.CompletedProcess[str] | Result) -> str:
    """The message, which must be all there is."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("megatron-vr: ")]
    assert lines, done.stderr
    return "\n".join(lines)


def test_a_typo_in_the_settings_ends_with_2_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "train.batch_sise=3")
    assert done.returncode == 2
    assert "did you mean `train.batch_size`" in complaint(done)
    assert not (tmp_path / "run").exists()


def test_a_context_too_small_for_the_outputs_ends_with_2(tmp_path: Path) -> None:
    done = ask(tmp_path / "run", "model.random.max_positions=25")
    assert done.exit_code == 2
    assert "rollouts.max_new_tokens is 30" in complaint(done)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "empty"),
        ([GOOD, GOOD], "repeats"),
        ([{"id": "a", "question": "S c8 G c18 W c3"}], "answer"),
        ([GOOD, GOOD | {"id": "b", "answer": ""}], "row"),
    ],
    ids=["no rows", "a duplicate id", "a missing column", "an empty answer"],
)
def test_bad_problems_end_with_1_and_leave_no_table(
    tmp_path: Path, content: list[object], told: str
) -> None:
    path = rows(tmp_path, *content)
    done = ask(tmp_path / "run", source(path))
    assert done.exit_code == 1
    message = complaint(done)
    assert told in message.lower(), message
    assert path.name in message
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_test_questions_among_the_training_questions_are_refused(tmp_path: Path) -> None:
    same = "[{kind: toy, split: train, seed: 1, count: 20, references: 10}]"
    done = ask(tmp_path / "run", f"problems.train={same}", f"problems.test={same}")
    assert done.exit_code == 1
    assert "problems.test shares 20 questions with problems.train" in complaint(done)


def test_a_full_disk_ends_with_1_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    limited = "import resource, signal, runpy, sys; " + "; ".join(
        [
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)",
            "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))",
            "sys.argv[0] = 'megatron-vr'",
            "runpy.run_module('megatron_vr', run_name='__main__', alter_sys=False)",
        ]
    )
    arguments = command(tmp_path / "run")[3:]
    done = subprocess.run(
        [sys.executable, "-c", limited, *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
    )
    assert done.returncode == 1, done.stderr
    assert "File too large" in complaint(done)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_changed_settings_end_with_1_and_name_the_change(tmp_path: Path) -> None:
    trained = "--iteration=0", "comparisons={}", "policy.steps=5"
    first = run(tmp_path / "run", *trained, verb="sft")
    assert first.returncode == 0, first.stderr
    second = ask(tmp_path / "run", "comparisons={}", "policy.steps=6")
    assert second.exit_code == 1
    assert "settings.train.steps: 5 → 6" in complaint(second)


def test_a_stage_before_its_inputs_says_what_to_run(tmp_path: Path) -> None:
    done = ask(tmp_path / "run", verb="weigh")
    assert done.exit_code == 1
    assert "megatron-vr " in complaint(done)
    assert "which is not done" in complaint(done)


def test_an_unknown_row_lists_the_rows(tmp_path: Path) -> None:
    done = ask(tmp_path / "run", "--arm=rtf", verb="train")
    assert done.exit_code == 2
    assert "rft-per-question" in complaint(done)


def test_a_comparison_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    done = ask(tmp_path / "run", "weights.estimator=gml")
    assert done.exit_code == 2
    assert "comparisons.rft: weights.estimator is 'gml'" in complaint(done)
    assert not (tmp_path / "run").exists()
