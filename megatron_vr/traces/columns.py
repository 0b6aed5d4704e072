"""Small questions asked of table columns."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def share(column: pa.ChunkedArray) -> float:
    """Share of true values in a boolean column; 0 for an empty one."""
    return float(pc.mean(column.cast(pa.float64())).as_py() or 0.0)


def usable(traces: pa.Table, longest: int | None) -> list[str]:
    """Why each trace can be learned from (`""`) or not (`unfinished`, `over-long`)."""
    lengths = pc.list_value_length(traces.column("trace_ids")).to_pylist()
    complete = traces.column("complete").to_pylist()
    return [_why_not(done, length, longest) for done, length in zip(complete, lengths, strict=True)]


def _why_not(complete: bool, length: int, longest: int | None) -> str:
    if longest is not None and length > longest:
        return "over-long"
    return "" if complete else "unfinished"
