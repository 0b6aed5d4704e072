"""`evaluate MODEL --benchmarks`: any model, each output graded once, resumed after a kill."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.parallel.layout import Layout
from megatron_vr.problems.toy import accepts
from tests.algorithm.benchmarking.toy_bench import (
    SETTINGS,
    ask,
    command,
    toy_rows,
    write_model,
    write_rows,
)
from tests.algorithm.tiny_run import ROOT, environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "mine.jsonl")


@pytest.fixture(scope="module")
def evaluated(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    ended = ask(model, *SETTINGS, "--benchmarks", str(rows), "--out", str(out))
    assert ended.exit_code == 0, ended.stderr
    return out


def table(out: Path, benchmark: str = "mine") -> list[dict[str, Any]]:
    parts = sorted((out / benchmark).glob("part-*.parquet"))
    found = [row for part in parts for row in pq.read_table(part).to_pylist()]
    for row in found:
        del row["seconds"]
    return sorted(found, key=lambda row: (row["problem_id"], row["index"]))


def test_every_question_has_its_outputs_and_its_files_are_there(evaluated: Path) -> None:
    found = table(evaluated)
    expected = {(f"mine/1-{n}", index) for n in range(12) for index in range(-1, 8)}
    assert {(row["problem_id"], row["index"]) for row in found} == expected
    assert len(found) == len(expected)
    names = {path.name for path in evaluated.iterdir()}
    assert {"results.json", "results.md", "accuracy.png", "pass-at-k.png"} <= names


def test_verdicts_are_those_of_the_verifier_on_the_text_that_was_kept(evaluated: Path) -> None:
    parameters = {f"mine/{row['id']}": row["parameters"] for row in toy_rows(12, 1)}
    for row in table(evaluated):
        _, marker, rest = row["output_text"].partition("</think>")
        answer, ended, _ = rest.partition("<eos>")
        right = bool(marker and ended and answer.strip())
        right = right and accepts(parameters[row["problem_id"]], answer)[0]
        assert row["accepted"] == right, row
        assert row["complete"] == (row["length"] < 24 or row["output_text"].endswith("<eos>"))


def test_the_results_say_what_the_table_says(evaluated: Path) -> None:
    results = json.loads((evaluated / "results.json").read_text())
    samples = [row for row in table(evaluated) if row["index"] >= 0]
    accepted = sum(row["accepted"] for row in samples) / len(samples)
    (told,) = results["benchmarks"]
    assert told["mean"]["value"] == pytest.approx(accepted)
    assert told["questions"] == 12


def test_a_megatron_checkpoint_gives_what_its_hugging_face_folder_gives(
    model: Path, rows: Path, evaluated: Path, tmp_path: Path
) -> None:
    convert_to_megatron(model, tmp_path / "megatron", Layout(tensor=2))
    out = tmp_path / "out"
    ended = ask(tmp_path / "megatron", *SETTINGS, "--benchmarks", str(rows), "--out", str(out))
    assert ended.exit_code == 0, ended.stderr
    assert table(out) == table(evaluated)


def test_after_a_kill_the_same_command_gives_what_an_undisturbed_one_gives(
    model: Path, rows: Path, evaluated: Path, tmp_path: Path
) -> None:
    words = [*SETTINGS, "--benchmarks", str(rows), "--out", str(tmp_path)]
    killed = subprocess.Popen(
        command(model, *words), env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "mine").glob("part-*")):
        assert killed.poll() is None and time.monotonic() < deadline, "it was not seen at work"
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "results.json").exists(), "it ended before it was killed"
    again = ask(model, *words)
    assert again.exit_code == 0, again.stderr
    assert table(tmp_path) == table(evaluated)


def test_a_benchmark_may_be_added_and_what_is_done_stays(
    model: Path, rows: Path, evaluated: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (evaluated / "mine").iterdir()}
    other = write_rows(tmp_path / "other.jsonl", count=3, seed=2)
    words = [*SETTINGS, "--benchmarks", f"{rows},{other}", "--out", str(evaluated)]
    ended = ask(model, *words, "--json")
    assert ended.exit_code == 0, ended.stderr
    assert {path: path.stat().st_mtime_ns for path in (evaluated / "mine").iterdir()} == before
    told = json.loads(ended.stdout)
    assert [row["benchmark"] for row in told["benchmarks"]] == ["mine", "other"]


@pytest.mark.parametrize(
    ("change", "message"),
    [("model", "model.weights: "), ("settings", r"how.sampling.temperature: 1.0 → 0.5")],
)
def test_numbers_of_two_models_or_settings_never_stand_in_one_table(
    change: str, message: str, model: Path, evaluated: Path, tmp_path: Path
) -> None:
    asked = write_model(tmp_path / "other", seed=2) if change == "model" else model
    words = ["sampling.temperature=0.5"] if change == "settings" else []
    other = write_rows(tmp_path / "third.jsonl", count=2, seed=3)
    ended = ask(asked, *SETTINGS, *words, "--benchmarks", str(other), "--out", str(evaluated))
    assert ended.exit_code == 1
    assert re.search(f"another model or asked otherwise: .*{message}", ended.stderr), ended.stderr
    assert not (evaluated / "third").exists()


def test_a_copy_of_the_model_is_the_same_model(
    model: Path, rows: Path, evaluated: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copyfile)
    words = [*SETTINGS, "--benchmarks", str(rows), "--out", str(evaluated)]
    ended = ask(copy, *words)
    assert ended.exit_code == 0 and "mine: done before" in ended.stderr, ended.stderr


def test_a_start_that_failed_does_not_stand_in_the_way_of_the_next(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    words = ["samples=1", "--benchmarks", str(rows), "--out", str(tmp_path / "out")]
    assert ask(model, *SETTINGS, "format=qwen", *words).exit_code == 2
    ended = ask(model, *SETTINGS, *words)
    assert ended.exit_code == 0, ended.stderr


def test_what_others_put_under_out_is_never_deleted(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "out" / "mine").mkdir(parents=True)
    notes = tmp_path / "out" / "mine" / "notes.txt"
    notes.write_text("a year of work")
    ended = ask(model, *SETTINGS, "--benchmarks", str(rows), "--out", str(tmp_path / "out"))
    assert ended.exit_code == 1 and "Traceback" not in ended.stderr, ended.stderr
    assert notes.read_text() == "a year of work"


def test_two_commands_do_not_work_in_one_folder(model: Path, rows: Path, tmp_path: Path) -> None:
    words = [*SETTINGS, "samples=300", "--benchmarks", str(rows), "--out", str(tmp_path / "out")]
    first = subprocess.Popen(
        command(model, *words), env=environment(), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out" / "mine").glob("part-*")):
            assert first.poll() is None and time.monotonic() < deadline, "it was not seen at work"
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = ask(model, *words)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert second.exit_code == 1 and "another process" in second.stderr, second.stderr


def test_two_models_are_compared_on_the_same_questions(
    rows: Path, evaluated: Path, tmp_path: Path
) -> None:
    other = write_model(tmp_path / "other", seed=2)
    out = tmp_path / "out"
    words = [*SETTINGS, "--benchmarks", str(rows), "--out", str(out)]
    ended = ask(other, *words, "--against", str(evaluated), "--json")
    assert ended.exit_code == 0, ended.stderr
    told = json.loads(ended.stdout)["comparison"]
    means = []
    for folder in (out, evaluated):
        samples = [row for row in table(folder) if row["index"] >= 0]
        means.append(sum(row["accepted"] for row in samples) / len(samples))
    (row,) = told["benchmarks"]
    assert row["difference"] == pytest.approx(means[0] - means[1])
    assert 0 <= row["p"] <= 1
    assert list((out / f"against-{evaluated.name}").glob("*.png"))


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((), 2, "say what .* is evaluated on: --benchmarks"),
        (("--benchmarks", "math5000"), 2, "math500"),
        (("--benchmarks", "nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("--benchmarks", "ROWS", "sampels=3"), 2, "unknown setting `sampels`.*`samples`"),
        (("--benchmarks", "ROWS", "format=qwen"), 2, "special token"),
        (("--benchmarks", "math500", "data=nowhere"), 2, "data is nowhere.*math500.jsonl"),
        (("--benchmarks", "ROWS", "--against", "nowhere"), 1, "nowhere holds no finished"),
        (("--benchmarks", "ROWS", "--iteration", "1"), 2, "--iteration and --arm choose"),
    ],
)
def test_what_cannot_be_is_one_clear_error(
    words: tuple[str, ...], code: int, message: str, model: Path, rows: Path, tmp_path: Path
) -> None:
    own = [word.replace("ROWS", str(rows)) for word in words]
    ended = ask(model, *own, "--out", str(tmp_path / "out"))
    assert ended.exit_code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(message, ended.stderr.replace("\n", " ")), ended.stderr


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("./nowhere", "./nowhere is no model"),
        ("http://127.0.0.1:9", "is a server running there"),
        ("EMPTY", "not a finished Megatron checkpoint"),
    ],
)
def test_a_target_that_is_no_model_is_one_clear_error(
    target: str, message: str, rows: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    ended = ask(
        target.replace("EMPTY", str(tmp_path / "empty")),
        "--benchmarks",
        str(rows),
        "--out",
        str(tmp_path / "out"),
    )
    assert ended.exit_code in (1, 2)
    assert message in ended.stderr and "Traceback" not in ended.stderr
