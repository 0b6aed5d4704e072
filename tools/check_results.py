#!/usr/bin/env python3
"""Check that a finished run left what it promises: check_results.py RUN_FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROWS = {"start", "sft", "rft", "variational"}
METRICS = ("accuracy", "greedy", "pass@8")


def faults(folder: Path) -> list[str]:
    """What is missing or out of range in `results.json` and the report."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found = [f"results.json has no row {row}" for row in sorted(ROWS - results["rows"].keys())]
    for name, row in results["rows"].items():
        scopes = {"all": row, **row["bands"]}
        found += [
            f"{name}, {scope}: {metric} is {values.get(metric)}"
            for scope, values in scopes.items()
            for metric in METRICS
            if not 0.0 <= values.get(metric, -1.0) <= 1.0
        ]
    page = folder / "report" / "index.html"
    if not page.exists():
        found.append(f"{page} is missing")
    if not list((folder / "report").glob("*.png")):
        found.append(f"no plots in {page.parent}")
    return found


if __name__ == "__main__":
    problems = faults(Path(sys.argv[1]))
    print("\n".join(problems) if problems else f"{sys.argv[1]}: results and report are complete")
    sys.exit(1 if problems else 0)
