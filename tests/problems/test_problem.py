from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from megatron_vr.errors import DataError
from megatron_vr.problems.problem import (
    PROBLEM_SCHEMA,
    Problem,
    check_problems,
    from_table,
    to_table,
)

FULL = Problem(
    id="a",
    question="Which? 🙂\n",
    answer="B",
    kind="choice",
    parameters={"options": ["x", "y"], "nested": {"n": 1, "none": None}},
    source="here",
    band="easy",
    reference_trace="z",
    reference_solution="y",
    answer_count=2,
)
BARE = Problem("b", "1?", "1", "math", {}, "there")


def test_problems_come_back_from_a_parquet_file_as_they_were(tmp_path: Path) -> None:
    table = to_table([FULL, BARE])
    assert table.schema.equals(PROBLEM_SCHEMA)
    pq.write_table(table, tmp_path / "problems.parquet")
    assert from_table(pq.read_table(tmp_path / "problems.parquet")) == [FULL, BARE]


def test_a_table_without_a_column_is_refused() -> None:
    with pytest.raises(DataError, match="'band' as missing"):
        from_table(to_table([BARE]).drop_columns(["band"]))


def test_parameters_that_are_not_json_are_refused() -> None:
    for value in ({1, 2}, float("nan")):
        with pytest.raises(DataError, match=r"problem 'b'.*JSON"):
            to_table([replace(BARE, parameters={"value": value})])


def test_one_error_names_every_fault_with_its_rows() -> None:
    problems = [replace(BARE, id=str(i), answer="" if i % 2 else "1") for i in range(20)]
    problems += [replace(BARE, id="0"), replace(BARE, id="c", question=" ")]
    with pytest.raises(DataError) as caught:
        check_problems(problems, "the set")
    message = str(caught.value)
    assert message.startswith("the set cannot be used: row 22: an empty question")
    assert "rows 2, 4, 6, 8, 10 and 5 more: an empty answer" in message
    assert "row 21: an id that an earlier row has" in message


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(DataError, match="the set holds no problem"):
        check_problems([], "the set")
