from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from megatron_vr.errors import DataError
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.source_settings import Source
from megatron_vr.problems.sources import content_digest, load_problems

ROWS = [
    {"question": "1 + 1?", "answer": 2, "band": "easy", "parameters": {"places": 0}},
    {"question": "1 / 2?", "answer": 0.5, "reference_trace": "Half.", "answer_count": 3},
]


def source(**values: Any) -> Source:
    return TypeAdapter(Source).validate_python(values)


def write(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def load(path: Path, **settings: Any) -> list[Problem]:
    return load_problems([source(kind="file", path=path, **settings)])


def test_a_jsonl_row_becomes_a_problem(tmp_path: Path) -> None:
    first, second = load(write(tmp_path / "p.jsonl", ROWS))
    assert (first.question, first.answer, first.kind) == ("1 + 1?", "2", "math")
    assert (first.band, first.parameters, first.answer_count) == ("easy", {"places": 0}, 1)
    assert (second.answer, second.reference_trace, second.answer_count) == ("0.5", "Half.", 3)
    assert first.source.endswith("p.jsonl")


def test_parquet_and_jsonl_and_a_data_set_folder_give_the_same_problems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [{"q": "1 + 1?", "a": "2"}, {"q": "2 + 2?", "a": "4"}]
    columns = {"question": "q", "answer": "a"}
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": saved}).save_to_disk(tmp_path / "splits")
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub" / "train.parquet", rows)
    found = [
        load(write(tmp_path / name, rows), columns=columns) for name in ("p.jsonl", "p.parquet")
    ]
    for name in ("saved", "splits", "hub"):
        settings = {"kind": "dataset", "name": str(tmp_path / name), "columns": columns}
        found.append(load_problems([source(**settings)]))
    texts = [[(p.id, p.question, p.answer) for p in problems] for problems in found]
    assert texts == [texts[0]] * 5
    assert [question for _, question, _ in texts[0]] == ["1 + 1?", "2 + 2?"]


def test_a_missing_column_names_the_file_the_column_and_those_present(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", [{"problem": "1?", "answer": "1"}])
    with pytest.raises(DataError, match=r"p\.parquet.*'question'.*present: problem, answer"):
        load(path)
    with pytest.raises(DataError, match=r"'level' for the band.*present: problem, answer"):
        load(path, columns={"question": "problem", "band": "level"})


def test_a_bad_json_line_is_named_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "1?", "answer": "1"}\n\n{"question": \n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 3 is not valid JSON"):
        load(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(DataError, match="line 1 holds list"):
        load(path)


def test_empty_and_missing_cells_are_named_with_their_rows(tmp_path: Path) -> None:
    rows: list[Any] = [{"question": f"{i}?", "answer": str(i)} for i in range(9)]
    for index in range(1, 8):
        rows[index] = {"question": f"{index}?", "answer": None if index % 2 else "  "}
    path = write(tmp_path / "p.parquet", rows)
    with pytest.raises(DataError, match=r"7 of 9 rows.*row 2: no 'answer'; row 3.*and 2 more"):
        load(path)
    assert [problem.answer for problem in load(path, on_bad_row="drop")] == ["0", "8"]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"answer": [1]}, "'answer' holds list"),
        ({"answer": True}, "'answer' holds bool"),
        ({"parameters": "{"}, "'parameters' is not valid JSON"),
        ({"parameters": [1]}, "'parameters' holds list"),
        ({"answer_count": 0}, "'answer_count' is 0"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_named(
    cell: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "p.jsonl", [{"question": "1?", "answer": "1"} | cell])
    with pytest.raises(DataError, match=f"line 1: {message}"):
        load(path)


def test_unreadable_and_empty_files_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*gone\.jsonl"):
        load(tmp_path / "gone.jsonl")
    (tmp_path / "p.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(DataError, match="not a readable Parquet"):
        load(tmp_path / "p.parquet")
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "latin.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="is empty"):
        load(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="'gone'"):
        load_problems([source(kind="dataset", name=str(tmp_path / "gone"), split="gone")])


def test_sources_are_joined_in_order_and_may_not_repeat_a_question(tmp_path: Path) -> None:
    file = source(kind="file", path=write(tmp_path / "p.jsonl", ROWS))
    toy = source(kind="toy", count=3)
    problems = load_problems([toy, file])
    assert [problem.kind for problem in problems] == ["toy-grid"] * 3 + ["math"] * 2
    with pytest.raises(DataError, match="rows 3, 4: an id that an earlier row has"):
        load_problems([file, file])
    with pytest.raises(DataError, match="no source holds no problem"):
        load_problems([])


def test_the_digest_is_of_what_is_on_disk(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", ROWS)
    file = source(kind="file", path=path)
    folder = source(kind="dataset", name=str(tmp_path))
    before = content_digest(file), content_digest(folder)
    assert before[0] == sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace("Half", "Two"))
    after = content_digest(file), content_digest(folder)
    assert before[0] != after[0] and before[1] != after[1] and None not in after
    assert content_digest(source(kind="dataset", name="someone/on-the-hub")) is None
    assert content_digest(source(kind="toy", count=3)) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "file", "path": "p.csv"}, r"\.jsonl or \.parquet"),
        ({"kind": "file", "path": "p.jsonl", "columns": {"qestion": "q"}}, "did you mean question"),
        (
            {"kind": "file", "path": "p.jsonl", "layout": "stratos", "columns": {"answer": "a"}},
            "conv",
        ),
        ({"kind": "file", "path": "p.jsonl", "colums": {}}, "colums"),
        ({"kind": "csv", "path": "p.jsonl"}, "kind"),
    ],
)
def test_faulty_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        source(**values)
