"""Questions are counted from the settings, from files here, or asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_vr.cluster.counting import count_questions
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.work import Counts
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError

TOY = {"kind": "toy", "split": "test", "count": 7}


def settings(tmp_path: Path, train: list[dict[str, Any]], test: dict[str, Any] = TOY) -> Settings:
    return Settings.model_validate(
        {
            "run": {"folder": tmp_path},
            "model": {"path": "Qwen/Qwen3-4B-Base"},
            "problems": {"train": train, "test": [test]},
            "policy": {"steps": 1},
            "posterior": {"train": {"steps": 1}},
            "train": {"steps": 1},
        }
    )


def counted(*arguments: Any, **assumed: Any) -> Counts:
    return count_questions(settings(*arguments), PlanAssumptions(**assumed))


def test_generated_questions_are_as_many_as_asked_for(tmp_path: Path) -> None:
    train = [{"kind": "toy", "count": 30, "references": 10}, {"kind": "toy", "count": 5}]
    assert counted(tmp_path, train) == Counts(train=35, references=10, test=7)


def test_rows_of_files_are_counted_up_to_their_limit(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.jsonl", tmp_path / "b.parquet"
    lines.write_text("".join(json.dumps({"id": n}) + "\n" for n in range(12)) + "\n")
    pq.write_table(pa.table({"id": list(range(20))}), table)
    train = [
        {"kind": "file", "path": str(lines)},
        {"kind": "file", "path": str(table), "limit": 15},
    ]
    assert counted(tmp_path, train) == Counts(train=27, references=27, test=7)


def test_the_papers_data_set_and_shipped_benchmarks_are_known(tmp_path: Path) -> None:
    train = [{"kind": "dataset", "name": "bespokelabs/Bespoke-Stratos-17k", "layout": "stratos"}]
    found = counted(tmp_path, train, {"kind": "benchmark", "name": "math500"})
    assert found == Counts(train=16_710, references=16_710, test=500)


def test_data_of_unknown_size_is_asked_for(tmp_path: Path) -> None:
    train = [{"kind": "dataset", "name": "someone/some-data"}]
    with pytest.raises(SettingsError, match="say it with --assume train_questions=N"):
        counted(tmp_path, train)
    assert counted(tmp_path, train, train_questions=9, references=4).references == 4


def test_a_file_that_is_elsewhere_is_asked_for(tmp_path: Path) -> None:
    test = {"kind": "file", "path": str(tmp_path / "missing.jsonl")}
    with pytest.raises(SettingsError, match=r"missing\.jsonl is not here.*test_questions=N"):
        counted(tmp_path, [{"kind": "toy", "count": 3}], test)
