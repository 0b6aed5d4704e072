"""Packs against what each sequence alone would be, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vr.errors import DataError
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.examples import Examples, read_examples
from megatron_vr.training.micro_batch import MicroBatch
from megatron_vr.training.places import PackShape

CPU = torch.device("cpu")


def examples(rows: list[tuple[list[int], int]]) -> Examples:
    table = [
        {
            "example_id": f"e{i}",
            "problem_id": f"p{i}",
            "origin": "reference",
            "token_ids": ids,
            "target_start": start,
            "weight": 1.0,
        }
        for i, (ids, start) in enumerate(rows)
    ]
    return read_examples(pa.Table.from_pylist(table, EXAMPLES))


@st.composite
def tables(draw: Any) -> list[tuple[list[int], int]]:
    rows = []
    for _ in range(draw(st.integers(1, 6))):
        ids = draw(st.lists(st.integers(0, 99), min_size=2, max_size=9))
        rows.append((ids, draw(st.integers(1, len(ids)))))
    return rows


@given(tables())
@settings(max_examples=100, deadline=None)
def test_a_pack_predicts_each_target_from_the_tokens_before_it(
    rows: list[tuple[list[int], int]],
) -> None:
    chosen = list(range(len(rows)))[::-1]
    batch = examples(rows).table.micro_batch(chosen, PackShape(), CPU)
    tokens, positions, labels, mask, found = [], [], [], [], []
    for owner, row in enumerate(chosen):
        ids, start = rows[row]
        for t in range(len(ids) - 1):
            tokens.append(ids[t])
            positions.append(t)
            labels.append(ids[t + 1])
            mask.append(t + 1 >= start)
            if t + 1 >= start:
                found.append((owner, t + 1))
    assert batch.tokens.tolist() == [tokens]
    assert batch.positions.tolist() == [positions]
    assert batch.labels.tolist() == [labels]
    assert batch.loss_mask.tolist() == [mask]
    assert list(zip(batch.owners.tolist(), batch.targets.tolist(), strict=True)) == found
    ends = np.cumsum([0] + [len(rows[row][0]) - 1 for row in chosen]).tolist()
    assert batch.packing.cu_seqlens_q.tolist() == ends
    assert batch.packing.cu_seqlens_q.dtype == torch.int32
    assert batch.packing.max_seqlen_q == max(len(rows[row][0]) - 1 for row in chosen)


@given(tables(), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 2, 16]))
@settings(max_examples=100, deadline=None)
def test_context_ranks_together_hold_every_place_once_in_equal_shares(
    rows: list[tuple[list[int], int]], context: int, tensor: int, align: int
) -> None:
    table = examples(rows).table
    chosen = range(len(rows))
    whole = table.micro_batch(chosen, PackShape(), CPU)
    parts = [
        table.micro_batch(chosen, PackShape(context, rank, tensor, align), CPU)
        for rank in range(context)
    ]
    sizes = {part.tokens.shape[1] for part in parts}
    assert len(sizes) == 1, f"shares of {sizes} places"
    on_rank = sizes.pop()
    assert on_rank % (tensor * align) == 0, "sequence-parallel ranks need equal, aligned shares"
    places = table.places[list(chosen)]
    assert PackShape(context, 0, tensor, align).total(places, 0) == on_rank * context
    ends = parts[0].packing.cu_seqlens_q
    assert ends[-1] == sum(part.tokens.shape[1] for part in parts)
    if context > 1:
        assert (ends.diff() % (2 * context) == 0).all()
    assert sorted(target for part in parts for target in predictions(part)) == sorted(
        predictions(whole)
    )


def predictions(batch: MicroBatch) -> list[tuple[int, int, int, int]]:
    """(sequence, target index, token before, label) of every target."""
    mask = batch.loss_mask
    columns = (
        batch.owners,
        batch.targets,
        batch.tokens[mask].numpy(),
        batch.labels[mask].numpy(),
    )
    assert (batch.positions[mask].numpy() + 1 == batch.targets).all()
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_context_shares_are_the_mirrored_chunks() -> None:
    shares = [PackShape(2, rank).share(np.array([0, 8, 12])).tolist() for rank in range(2)]
    assert shares == [[0, 1, 6, 7, 8, 11], [2, 3, 4, 5, 9, 10]]


def test_a_pack_of_nothing_is_one_place_without_a_target() -> None:
    batch = examples([([5, 6], 1)]).table.micro_batch([], PackShape(), CPU)
    assert batch.tokens.shape == (1, 1)
    assert not batch.loss_mask.any()
    assert batch.packing.cu_seqlens_q.tolist() == [0, 1]


@pytest.mark.parametrize("start", [0, 4])
def test_a_target_start_outside_its_example_is_named(start: int) -> None:
    with pytest.raises(DataError, match=f"row 1 .* target_start {start}, but 3 tokens"):
        examples([([1, 2], 1), ([1, 2, 3], start)])


def test_target_counts_are_the_tokens_from_target_start_on() -> None:
    found = examples([([1, 2, 3, 4], 1), ([1, 2, 3], 3)])
    assert found.target_counts.tolist() == [3, 0]
    assert found.lengths.tolist() == [4, 3]


def test_nulls_and_an_empty_table_are_refused() -> None:
    empty = EXAMPLES.empty_table()
    with pytest.raises(DataError, match="empty"):
        read_examples(empty)
    row = dict.fromkeys(EXAMPLES.names)
    with pytest.raises(DataError, match="nulls"):
        read_examples(pa.Table.from_pylist([row], EXAMPLES))
    with pytest.raises(DataError, match="EXAMPLES"):
        read_examples(pa.table({"weight": [1.0]}))


def test_a_slice_of_a_table_reads_as_its_rows() -> None:
    rows = [
        dict(
            example_id=f"e{i}",
            problem_id="p",
            origin="reference",
            token_ids=[i, i + 1, i + 2],
            target_start=1,
            weight=float(i),
        )
        for i in range(4)
    ]
    found = read_examples(pa.Table.from_pylist(rows, EXAMPLES).slice(2))
    assert found.table.tokens.tolist() == [2, 3, 4, 3, 4, 5]
    assert found.ids == ["e2", "e3"]
    assert found.weights.tolist() == [2.0, 3.0]
