"""The EXAMPLES table as arrays, checked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from megatron_vr.errors import DataError
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.micro_batch import TokenTable


@dataclass(frozen=True)
class Examples:
    """Rows of the EXAMPLES table.

    `weights` [n] float64, `target_counts` [n] and `lengths` [n] int64 tokens.
    """

    ids: list[str]
    table: TokenTable
    weights: NDArray[np.float64]
    target_counts: NDArray[np.int64]
    lengths: NDArray[np.int64]


def read_examples(table: pa.Table) -> Examples:
    """`table` of schema EXAMPLES as arrays.

    Raises DataError where there is no row, a null, or a `target_start` that is not the place of a
    token after the first (the first has no token before it to be predicted from).
    """
    try:
        table = table.select(EXAMPLES.names).cast(EXAMPLES)
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise DataError(f"the examples are not a table of the EXAMPLES schema: {error}") from error
    if not table.num_rows:
        raise DataError("the table of examples is empty: nothing to learn from")
    for name in ("example_id", "token_ids", "target_start", "weight"):
        if table.column(name).null_count:
            raise DataError(f"column {name} of the examples has nulls; every row needs a value")
    # Offsets of 64 bits: one column may hold more than 2³¹ tokens.
    rows = table.column("token_ids").cast(pa.large_list(pa.int32())).combine_chunks()
    offsets = rows.offsets.to_numpy().astype(np.int64)
    tokens = rows.values.to_numpy()[offsets[0] : offsets[-1]]
    offsets = offsets - offsets[0]
    starts = table.column("target_start").to_numpy().astype(np.int64)
    lengths = np.diff(offsets)
    _check_starts(starts, lengths)
    place = np.arange(len(tokens)) - np.repeat(offsets[:-1], lengths)
    return Examples(
        ids=table.column("example_id").to_pylist(),
        table=TokenTable(tokens, place >= np.repeat(starts, lengths), offsets),
        weights=table.column("weight").to_numpy(),
        target_counts=lengths - starts,
        lengths=lengths,
    )


def _check_starts(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    wrong = np.flatnonzero((starts < 1) | (starts > lengths))
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"row {row} of the examples has target_start {starts[row]}, but {lengths[row]} tokens; "
            "targets begin at token 1 or later and within the example"
        )
