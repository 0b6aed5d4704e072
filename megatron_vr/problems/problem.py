"""A question with a reference answer y', what its verifier needs, and the table of problems."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from megatron_vr.errors import DataError

SHOWN = 5

PROBLEM_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),  # y'
        pa.field("kind", pa.string(), nullable=False),  # which verifier judges
        pa.field("parameters", pa.string(), nullable=False),  # the verifier's, as JSON
        pa.field("source", pa.string(), nullable=False),
        pa.field("band", pa.string()),
        pa.field("reference_trace", pa.string()),
        pa.field("reference_solution", pa.string()),
        pa.field("answer_count", pa.int64(), nullable=False),  # |Y_x|
    ]
)


@dataclass(frozen=True)
class Problem:
    """One question x.

    `answer` is y', a member of Y_x, and the hint of the posterior. `kind` names the verifier and
    `parameters` (JSON values only) is what that verifier needs beside `answer`. `band` groups
    questions in reports. `reference_trace` and `reference_solution` are a known good z and y.
    `answer_count` is |Y_x|, 1 where unknown.
    """

    id: str
    question: str
    answer: str
    kind: str
    parameters: dict[str, Any]
    source: str
    band: str | None = None
    reference_trace: str | None = None
    reference_solution: str | None = None
    answer_count: int = 1


def question_id(question: str) -> str:
    """An id that depends on the question's text alone: 16 hex digits of its SHA-256."""
    return hashlib.sha256(question.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def to_table(problems: Sequence[Problem]) -> pa.Table:
    """`problems` as a table of PROBLEM_SCHEMA, in order.

    Raises DataError for parameters that JSON cannot hold.
    """
    rows = [asdict(problem) | {"parameters": _as_json(problem)} for problem in problems]
    return pa.Table.from_pylist(rows, schema=PROBLEM_SCHEMA)


def from_table(table: pa.Table) -> list[Problem]:
    """The problems of a table with PROBLEM_SCHEMA's columns.

    Raises DataError when a column is missing or of another type.
    """
    for field in PROBLEM_SCHEMA:
        found = table.schema.field(field.name).type if field.name in table.column_names else None
        if found != field.type:
            raise DataError(
                f"the table of problems has column {field.name!r} as {found or 'missing'}, not "
                f"{field.type}; write it again with this version"
            )
    rows = table.select(PROBLEM_SCHEMA.names).to_pylist()
    return [Problem(**{**row, "parameters": json.loads(row["parameters"])}) for row in rows]


def check_problems(problems: Sequence[Problem], where: str) -> None:
    """Raise one DataError naming every kind of fault, with the first rows (from 1) of each.

    Faults: no problem at all, an id used before, an empty question or answer.
    """
    if not problems:
        raise DataError(f"{where} holds no problem; give it at least one question")
    faults = [
        _rows("an empty question", [i for i, p in _numbered(problems) if not p.question.strip()]),
        _rows("an empty answer", [i for i, p in _numbered(problems) if not p.answer.strip()]),
        _rows("an id that an earlier row has (often: the same question)", _repeated(problems)),
    ]
    found = [fault for fault in faults if fault]
    if found:
        raise DataError(f"{where} cannot be used: {'; '.join(found)}; fill in or remove those rows")


def rows_text(numbers: Sequence[int], unit: str = "row") -> str:
    """The first few row numbers and how many there are, as in `rows 2, 5 and 9 more`."""
    if len(numbers) == 1:
        return f"{unit} {numbers[0]}"
    shown = ", ".join(str(number) for number in numbers[:SHOWN])
    rest = len(numbers) - SHOWN
    return f"{unit}s {shown}" + (f" and {rest} more" if rest > 0 else "")


def _as_json(problem: Problem) -> str:
    try:
        return json.dumps(problem.parameters, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"problem {problem.id!r}: its parameters cannot be written as JSON ({error}); "
            "use text, numbers, lists and dictionaries only"
        ) from None


def _numbered(problems: Sequence[Problem]) -> list[tuple[int, Problem]]:
    return list(enumerate(problems, start=1))


def _repeated(problems: Sequence[Problem]) -> list[int]:
    seen: set[str] = set()
    repeated = []
    for number, problem in _numbered(problems):
        if problem.id in seen:
            repeated.append(number)
        seen.add(problem.id)
    return repeated


def _rows(fault: str, numbers: Sequence[int]) -> str:
    return f"{rows_text(numbers)}: {fault}" if numbers else ""
