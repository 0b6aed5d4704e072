"""Means, standard errors and marks of the results table."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest

from megatron_vr.report.results import (
    Evaluated,
    Scope,
    difference,
    in_order,
    marks,
    mean,
    scopes,
    score,
)

IDS = ("a", "b", "c", "d")
EVERYTHING = Scope("all", frozenset(IDS))


def row(*values: float) -> Evaluated:
    return Evaluated(IDS, {"accuracy": np.array(values)})


def test_the_standard_error_is_the_deviation_over_the_root_of_the_questions() -> None:
    values = [0.0, 0.5, 1.0, 0.75]
    found = score(row(*values), "accuracy", EVERYTHING)
    assert found is not None
    assert found.value == pytest.approx(fmean(values))
    assert found.error == pytest.approx(stdev(values) / math.sqrt(4))


def test_a_band_counts_its_own_questions_only() -> None:
    found = score(row(0.0, 0.5, 1.0, 1.0), "accuracy", Scope("hard", frozenset({"a", "b"})))
    assert found is not None
    assert (found.value, found.count) == (0.25, 2)


def test_no_questions_have_no_mean() -> None:
    assert mean([]) is None


def test_a_difference_pairs_the_questions() -> None:
    better, worse = row(0.1, 0.4, 0.7, 1.0), row(0.0, 0.3, 0.6, 0.9)
    found = difference(better, worse, "accuracy", EVERYTHING)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.error == pytest.approx(0.0, abs=1e-12), "every question differs by the same 0.1"


def test_only_rows_within_two_paired_errors_of_the_best_are_marked() -> None:
    rows = {
        "best": row(1.0, 1.0, 0.5, 0.5),
        "close": row(1.0, 0.0, 0.5, 0.5),
        "far": row(0.5, 0.5, 0.0, 0.0),
    }
    marked = marks(rows, "accuracy", EVERYTHING)
    assert marked == {"best": "best", "close": "close", "far": ""}


def test_a_column_of_equals_marks_nobody() -> None:
    rows = {"one": row(1.0, 0.0, 1.0, 0.0), "other": row(0.0, 1.0, 0.0, 1.0)}
    assert set(marks(rows, "accuracy", EVERYTHING).values()) == {""}


def test_bands_come_from_easy_to_hard_then_by_name() -> None:
    assert in_order({"hard", "zebra", "easy", "mid", "apple"}) == [
        "easy",
        "mid",
        "hard",
        "apple",
        "zebra",
    ]
    assert [scope.name for scope in scopes({"a": "hard", "b": None, "c": "easy"})] == [
        "all",
        "easy",
        "hard",
    ]
