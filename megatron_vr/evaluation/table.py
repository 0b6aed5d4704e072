"""The results table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = ("greedy", "accuracy")


def print_results(results: Mapping[str, Any], console: Console | None = None) -> None:
    """One line per row: greedy, mean over samples and pass@k, over all and per band."""
    rows, spreads = results["rows"], results.get("spread", {})
    first = next(iter(rows.values()))
    metrics = [*METRICS, *(key for key in first if key.startswith("pass@"))]
    bands = list(first["bands"])
    table = Table(title="held-out questions", caption="accuracy: mean over samples")
    table.add_column("row", no_wrap=True)
    for scope in ("all", *bands):
        for metric in metrics:
            table.add_column(f"{scope}\n{metric}", justify="right", no_wrap=True)
    for name, row in rows.items():
        wide = spreads.get(name, {})
        cells = [_cell(row, wide, metric) for metric in metrics]
        for band in bands:
            deeper = wide.get("bands", {}).get(band, {})
            cells += [_cell(row["bands"].get(band, {}), deeper, metric) for metric in metrics]
        table.add_row(name, *cells)
    (console or Console()).print(table)


def _cell(row: Mapping[str, Any], wide: Mapping[str, Any], metric: str) -> str:
    if metric not in row:
        return "–"
    value = f"{row[metric]:.3f}"
    return f"{value} ±{wide[metric]:.3f}" if metric in wide else value
