"""From rows to problems: the plain layout, what becomes of rows that cannot be used, limits."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vr.errors import DataError
from megatron_vr.problems.problem import Problem, question_id
from megatron_vr.problems.rows import Row, Rows
from megatron_vr.problems.source_settings import PLAIN_FIELDS, RowSettings

logger = logging.getLogger(__name__)

SHOWN = 5


class BadRow(Exception):
    """Why a row cannot be used. `drop` overrides the source's `on_bad_row` where it is set."""

    def __init__(self, reason: str, drop: bool | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.drop = drop


@dataclass(frozen=True)
class Interpreted:
    """The problems of a source and, by reason, how many rows were dropped."""

    problems: tuple[Problem, ...]
    dropped: Counter[str]


def interpret(rows: Rows, settings: RowSettings, read: Callable[[Row], Problem]) -> Interpreted:
    """One problem per row by `read`, up to `limit`; a question seen before is a bad row.

    Raises DataError with row numbers for rows that are neither usable nor to be dropped.
    """
    problems: dict[str, Problem] = {}
    first_row: dict[str, int] = {}
    dropped: Counter[str] = Counter()
    refused: list[tuple[int, str]] = []
    for row in rows.rows:
        if settings.limit is not None and len(problems) == settings.limit:
            break
        try:
            problem = read(row)
            if problem.id in problems:
                raise BadRow(f"repeats the question or id of {rows.unit} {first_row[problem.id]}")
        except BadRow as bad:
            drop = settings.on_bad_row == "drop" if bad.drop is None else bad.drop
            if drop:
                dropped[bad.reason] += 1
            else:
                refused.append((row.number, bad.reason))
            continue
        problems[problem.id] = problem
        first_row[problem.id] = row.number
    if refused:
        raise DataError(_refusal(rows, refused))
    if dropped:
        _log(rows, dropped)
    return Interpreted(tuple(problems.values()), dropped)


def plain_reader(rows: Rows, settings: RowSettings) -> Callable[[Row], Problem]:
    """A reader of rows with a column per field.

    `question` and `answer` are needed; other fields are read where a column has their name.
    Raises DataError naming the columns present when a needed or named column is missing.
    """
    columns = {field: settings.columns.get(field, field) for field in PLAIN_FIELDS}
    for field in ("question", "answer", *settings.columns):
        rows.require(columns[field], field)
    present = {field: column for field, column in columns.items() if column in rows.columns}

    def read(row: Row) -> Problem:
        cells = {field: row.values.get(column) for field, column in present.items()}
        return _plain_problem(cells, present, rows.name, settings.verifier)

    return read


def _plain_problem(
    cells: dict[str, Any], columns: dict[str, str], source: str, verifier: str
) -> Problem:
    def text(field: str) -> str | None:
        return _text(cells.get(field), columns.get(field, field))

    def needed(field: str) -> str:
        value = text(field)
        if value is None or not value.strip():
            raise BadRow(f"no {columns[field]!r}")
        return value

    question = needed("question")
    return Problem(
        id=text("id") or question_id(question),
        question=question,
        answer=needed("answer"),
        kind=verifier,
        parameters=_parameters(cells.get("parameters"), columns.get("parameters", "parameters")),
        source=source,
        band=text("band") or None,
        reference_trace=text("reference_trace") or None,
        reference_solution=text("reference_solution") or None,
        answer_count=_count(cells.get("answer_count"), columns.get("answer_count", "")),
    )


def _text(value: Any, column: str) -> str | None:
    """Text as it is and a number as it prints; None for an empty cell."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"{column!r} holds {type(value).__name__}, not text or a number")


def _parameters(value: Any, column: str) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise BadRow(f"{column!r} is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRow(f"{column!r} holds {type(value).__name__}, not an object")
    return value


def _count(value: Any, column: str) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRow(f"{column!r} is {value!r}, not a whole number of at least 1")
    return value


def _refusal(rows: Rows, refused: Sequence[tuple[int, str]]) -> str:
    shown = "; ".join(f"{rows.unit} {number}: {reason}" for number, reason in refused[:SHOWN])
    rest = len(refused) - SHOWN
    more = f"; and {rest} more" if rest > 0 else ""
    return (
        f"{rows.name}: {len(refused)} of {len(rows.rows)} rows cannot be used: {shown}{more}; "
        "correct them, or drop them with `on_bad_row: drop` (`unboxed: drop` for missing \\boxed)"
    )


def _log(rows: Rows, dropped: Counter[str]) -> None:
    reasons = "; ".join(f"{count} × {reason}" for reason, count in dropped.most_common(SHOWN))
    logger.warning(
        "%s: dropped %d of %d rows (%s)", rows.name, dropped.total(), len(rows.rows), reasons
    )
