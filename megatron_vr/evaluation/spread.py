"""Mean and spread of results over seeds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any


def spread(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The results with every number replaced by its mean over runs; `spread` beside `rows` holds
    the sample standard deviation (0 for a single run) in the same form."""
    rows = [result["rows"] for result in results]
    return {
        "seeds": [result["seed"] for result in results],
        "rows": _combine(rows, fmean),
        "spread": _combine(rows, lambda values: stdev(values) if len(values) > 1 else 0.0),
    }


def _combine(nodes: Sequence[Any], how: Any) -> Any:
    first = nodes[0]
    if isinstance(first, Mapping):
        return {key: _combine([node[key] for node in nodes], how) for key in first}
    return how([float(node) for node in nodes])
