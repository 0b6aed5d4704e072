"""A small run of two iterations on two processes, and what its tables must agree on."""

from __future__ import annotations

import json
import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.algorithm.benchmarking.toy_bench import write_rows
from tests.algorithm.probes import gaps_of_export
from tests.algorithm.tiny_run import ask, run

ITERATIONS = [
    "run.iterations=2",
    "scoring.per_token=true",
    "parallel.processes=2",
    "posterior.data=both",
    "posterior.train.start=last",
    "policy.steps=150",
    "policy.optimizer.learning_rate=4e-3",
    # Nothing stops it.
    "policy.save_every=1000",
    "posterior.train.save_every=1000",
    "train.save_every=1000",
    "comparisons={rft: {traces.sampler: policy, weights.normalise: none}, "
    "variational-gml: {weights.estimator: gml, data.traces: best}}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "two"
    done = run(path, *ITERATIONS)
    assert done.returncode == 0, done.stderr
    return path


def rows(folder: Path, stage: str) -> list[dict[str, Any]]:
    found = [row for part in sorted((folder / stage).glob("part-*")) for row in _part(part)]
    assert found, f"{stage} has no rows"
    return found


def _part(path: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return table


def test_every_row_of_the_table_has_every_number(folder: Path) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert list(results["rows"]) == ["start", "rft", "variational-gml", "variational"]
    for row in results["rows"].values():
        assert set(row) >= {"accuracy", "greedy", "pass@8", "bands"}


def test_every_training_keeps_what_it_was_built_from(folder: Path) -> None:
    trained = {file.parent for file in folder.rglob("metrics.jsonl")}
    assert {file.parent for file in folder.rglob("built.json")} == trained
    built = json.loads((folder / "iteration-0/sft/built.json").read_text())
    assert built["resolved"]["optimizer"]["lr"] == 4e-3
    assert built["resolved"]["layers"] == "plain"
    assert built["earlier"] == []


@pytest.mark.parametrize("who", ["policy", "posterior"])
def test_log_probs_and_entropies_of_every_token_are_kept_when_asked(folder: Path, who: str) -> None:
    scores = rows(folder, "iteration-1/score")
    for score, found in zip(scores, rows(folder, f"iteration-1/score/{who}"), strict=True):
        answer = score["answer_length"] if who == "policy" else 0
        assert len(found["token_log_probs"]) == score["trace_length"] + answer
        assert len(found["token_entropies"]) == len(found["token_log_probs"])
        assert sum(found["token_log_probs"]) == pytest.approx(sum(found["sums"]), abs=1e-4)
        assert min(found["token_entropies"]) >= -1e-6


def test_an_engine_too_far_from_the_trainer_stops_the_run(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for name in ("score", "weigh", "train", "export-policy", "evaluate"):
        (copy / "iteration-2" / name / "_DONE.json").unlink()
    alone = "parallel.processes=1"  # scores the same, and one rank is started sooner than two
    done = run(copy, *ITERATIONS, alone, "scoring.largest_engine_gap=1e-12")
    assert done.returncode == 1
    assert "scoring.largest_engine_gap=1e-12" in done.stderr
    assert "nats per token from the trainer's" in done.stderr


def test_every_export_has_the_log_probs_that_its_training_left(folder: Path) -> None:
    exports = sorted(folder.rglob("export-*"))
    assert len(exports) >= 5
    for export in exports:
        gaps = gaps_of_export(export)
        assert gaps.tokens > 20
        assert gaps.largest < 1e-4, export
    for trained, export in (("sft", "export-policy"), ("posterior", "export-posterior")):
        iteration = folder / f"iteration-{int(trained == 'posterior')}"
        left = (iteration / trained / "probe.json").read_bytes()
        assert (iteration / export / "probe.json").read_bytes() == left


@pytest.mark.parametrize("t", [1, 2])
def test_the_engine_and_the_trainer_agree_on_the_posteriors_log_probs(folder: Path, t: int) -> None:
    traces = {row["trace_id"]: row for row in rows(folder, f"iteration-{t}/sample-posterior")}
    for score in rows(folder, f"iteration-{t}/score"):
        trace = traces[score["trace_id"]]
        assert len(trace["trace_ids"]) == score["trace_length"]
        assert score["sampler_log_prob"] == pytest.approx(trace["engine_log_prob"], abs=1e-3)
        assert sum(trace["token_log_probs"]) == pytest.approx(trace["engine_log_prob"], abs=1e-4)
        assert 0 <= score["engine_gap"] < 1e-4, "two computations, which agree to rounding"


@pytest.mark.parametrize("t", [1, 2])
def test_weights_are_the_formula_on_the_tables_before(folder: Path, t: int) -> None:
    scores = {row["trace_id"]: row for row in rows(folder, f"iteration-{t}/score")}
    verdicts = defaultdict(list)
    for row in rows(folder, f"iteration-{t}/answer"):
        verdicts[row["trace_id"]].append(row["accepted"])
    weights = rows(folder, f"iteration-{t}/weigh")
    rho: dict[str, float] = {}
    for row in weights:
        name = row["trace_id"]
        accuracy = sum(verdicts[name]) / len(verdicts[name]) if name in verdicts else 0.0
        score = scores.get(name)
        ratio = 1.0
        if score is not None:
            difference = score["policy_log_prob"] - score["sampler_log_prob"]
            ratio = math.exp(difference / score["trace_length"])
        rho[name] = accuracy * ratio
    totals: dict[str, float] = defaultdict(float)
    for row in weights:
        totals[row["problem_id"]] += rho[row["trace_id"]]
    for row in weights:
        total = totals[row["problem_id"]]
        expected = rho[row["trace_id"]] / total if total else 0.0
        assert row["weight"] == pytest.approx(expected, abs=1e-9)
        assert row["chosen"] == (expected > 0)


def test_the_theta_step_learns_sampled_ids_as_they_are(folder: Path) -> None:
    sampled = {
        row["trace_id"]: row["trace_ids"] for row in rows(folder, "iteration-1/sample-posterior")
    }
    learned = [row for row in rows(folder, "iteration-1/train") if row["origin"] == "posterior"]
    chosen = [row for row in rows(folder, "iteration-1/weigh") if row["chosen"]]
    assert {row["example_id"] for row in learned} == {row["trace_id"] for row in chosen}
    for row in learned:
        trace = sampled[row["example_id"]]
        start = row["target_start"]
        assert row["token_ids"][start : start + len(trace)] == trace


def test_the_second_posterior_learns_from_the_first_policys_rollouts(folder: Path) -> None:
    accepted = {
        row["trace_id"]
        for row in rows(folder, "iteration-2/sample-policy")
        if row["accepted"] and row["complete"]
    }
    origins = {row["example_id"] for row in rows(folder, "iteration-2/posterior")}
    assert {name for name in origins if "/policy/2/" in name} <= accepted


def test_best_data_has_one_trace_per_question(folder: Path) -> None:
    chosen = [
        row["problem_id"]
        for row in rows(folder, "comparisons/variational-gml/iteration-1/weigh")
        if row["chosen"]
    ]
    assert chosen and len(chosen) == len(set(chosen))


def test_the_runs_own_model_goes_through_benchmarks_as_the_run_asks_it(
    folder: Path, tmp_path: Path
) -> None:
    bench = write_rows(tmp_path / "mine.jsonl")
    words = ["samples=32", "--benchmarks", str(bench), "--iteration", "2"]
    done = run(folder, *ITERATIONS, *words, verb="evaluate")
    assert done.returncode == 0, done.stderr
    out = folder / "evaluations" / "variational-2"
    results = json.loads((out / "results.json").read_text())
    assert results["model"] == str(folder / "iteration-2" / "export-policy" / "model")
    content = json.loads((out / "mine" / "fingerprint.json").read_text())["settings"]
    asked = content["how"]["sampling"]
    assert (asked["temperature"], asked["max_new_tokens"]) == (1.0, 30)
    assert results["benchmarks"][0]["samples"]["total"] == 12 * 32
    assert results["benchmarks"][0]["mean"]["value"] > 0, "a trained model is never right"

    odd = ask(folder, *ITERATIONS, *words[:-1], "7", verb="evaluate")
    assert odd.exit_code == 2 and "no policy of iteration 7" in odd.stderr
