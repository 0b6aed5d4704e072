"""Accuracies with their standard errors, and which differences are more than noise. Pure.

A standard error is that of a mean over questions, s / √n. Rows answer the same questions, so the
error of a difference between two rows is that of the paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
ALL = "all"
EASY_TO_HARD = ("easy", "mid", "medium", "hard")
CLOSE = 2.0  # standard errors within which a row is not told from the best


@dataclass(frozen=True)
class Score:
    """A mean over `count` questions and its standard error (0 for a single question)."""

    value: float
    error: float
    count: int


@dataclass(frozen=True)
class Evaluated:
    """What one evaluation says of each question: metric → [questions], in the order of `ids`."""

    ids: tuple[str, ...]
    values: Mapping[str, Floats]


@dataclass(frozen=True)
class Scope:
    """A set of questions that numbers are given for: all of them, or a band."""

    name: str
    ids: frozenset[str]


def shared_metrics(rows: Mapping[str, Evaluated]) -> list[str]:
    """The metrics that every row has, in the first one's order."""
    first, *others = rows.values()
    return [metric for metric in first.values if all(metric in row.values for row in others)]


def scopes(bands: Mapping[str, str | None]) -> list[Scope]:
    """All questions, then each band from easy to hard; from id → band."""
    found = in_order({band for band in bands.values() if band})
    inside = {name: frozenset(i for i, band in bands.items() if band == name) for name in found}
    return [Scope(ALL, frozenset(bands)), *(Scope(name, inside[name]) for name in found)]


def in_order(bands: Iterable[str]) -> list[str]:
    """Bands of known names from easy to hard, then the others by name."""
    return sorted(bands, key=lambda band: (_place(band), band))


def mean(values: Iterable[float] | Floats) -> Score | None:
    """Mean and standard error of one number per question; None without any."""
    numbers = np.asarray(list(values), dtype=np.float64)
    if not numbers.size:
        return None
    error = numbers.std(ddof=1) / math.sqrt(numbers.size) if numbers.size > 1 else 0.0
    return Score(float(numbers.mean()), float(error), int(numbers.size))


def score(row: Evaluated, metric: str, scope: Scope) -> Score | None:
    """The row's mean of `metric` over the questions of `scope`."""
    return mean(row.values[metric][_inside(row, scope)])


def difference(a: Evaluated, b: Evaluated, metric: str, scope: Scope) -> Score | None:
    """Mean of a − b over the questions that both have, with the paired standard error."""
    of_b = dict(zip(b.ids, b.values[metric].tolist(), strict=True))
    of_a = zip(a.ids, a.values[metric].tolist(), strict=True)
    return mean([value - of_b[i] for i, value in of_a if i in of_b and i in scope.ids])


def marks(rows: Mapping[str, Evaluated], metric: str, scope: Scope) -> dict[str, str]:
    """Row → `best`, `close` (within two paired standard errors of the best) or nothing."""
    known = {name: score(row, metric, scope) for name, row in rows.items()}
    values = {name: found.value for name, found in known.items() if found}
    if len(values) < 2:
        return dict.fromkeys(rows, "")
    top = max(values.values())
    if top == min(values.values()):
        return dict.fromkeys(rows, "")
    best = next(name for name, value in values.items() if value == top)
    marked = {}
    for name in rows:
        behind = difference(rows[best], rows[name], metric, scope)
        if name in values and values[name] == top:
            marked[name] = "best"
        elif behind and behind.value <= CLOSE * behind.error:
            marked[name] = "close"
        else:
            marked[name] = ""
    return marked


def _place(band: str) -> int:
    return EASY_TO_HARD.index(band) if band in EASY_TO_HARD else len(EASY_TO_HARD)


def _inside(row: Evaluated, scope: Scope) -> Sequence[int]:
    return [place for place, name in enumerate(row.ids) if name in scope.ids]
