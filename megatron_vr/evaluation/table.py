"""The results table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """A section for all questions and for each band; a line in it for each row."""
    rows, spreads = results["rows"], results.get("spread", {})
    first = next(iter(rows.values()))
    metrics = ["greedy", "accuracy", *(key for key in first if key.startswith("pass@"))]
    table = Table(title="held-out questions", box=SIMPLE_HEAD, caption="accuracy: over samples")
    for name in ("questions", "row"):
        table.add_column(name, no_wrap=True)
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    for scope in ("all", *first["bands"]):
        shown = f"{scope} ({first['questions'] if scope == 'all' else _count(first, scope)})"
        for name, row in rows.items():
            values, wide = _scope(row, scope), _scope(spreads.get(name, {}), scope)
            table.add_row(shown, name, *(_cell(values, wide, metric) for metric in metrics))
            shown = ""
        table.add_section()
    (console or Console()).print(table)


def _scope(row: Mapping[str, Any], scope: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row if scope == "all" else row.get("bands", {}).get(scope, {})
    return found


def _count(row: Mapping[str, Any], band: str) -> str:
    return f"{row['bands'][band]['questions']:g}"


def _cell(values: Mapping[str, Any], wide: Mapping[str, Any], metric: str) -> str:
    if metric not in values:
        return "–"
    value = _share(values[metric])
    return f"{value} ±{_share(wide[metric])}" if metric in wide else value


def _share(value: float) -> str:
    """`.733`: without the zero, so that means and spreads fit 80 columns."""
    return f"{value:.3f}".removeprefix("0")
