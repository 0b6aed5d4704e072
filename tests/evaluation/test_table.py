from __future__ import annotations

import io

from rich.console import Console

from megatron_vr.evaluation.spread import spread
from megatron_vr.evaluation.table import print_results


def row(value: float) -> dict[str, object]:
    numbers = {"greedy": value, "accuracy": value, "pass@8": 1.0, "questions": 500}
    return numbers | {"bands": {"easy": numbers | {"questions": 266}}}


def test_means_and_spreads_of_every_row_fit_80_columns() -> None:
    runs = [
        {"seed": seed, "rows": {"start": row(0.25), "variational-likelihood": row(value)}}
        for seed, value in ((1, 0.5), (2, 0.7))
    ]
    out = io.StringIO()
    print_results(spread(runs), Console(file=out, width=80))
    shown = out.getvalue()
    assert "…" not in shown
    assert ".600 ±.141" in shown
    assert "1.000 ±.000" in shown
    assert "easy (266)" in shown
