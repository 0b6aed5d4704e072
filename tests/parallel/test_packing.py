"""The invariants of packing a global batch, for every batch there is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vr.errors import DataError
from megatron_vr.parallel.packing import CostModel, pack_batch

BATCHES = st.integers(1, 40).flatmap(
    lambda budget: st.tuples(st.just(budget), st.lists(st.integers(1, budget), max_size=60))
)


@given(BATCHES, st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=300, deadline=None)
def test_every_sequence_is_packed_once_within_the_budget_and_ranks_agree_on_the_count(
    batch: tuple[int, list[int]], ranks: int, multiple: int
) -> None:
    budget, lengths = batch
    plan = pack_batch(lengths, ranks, budget, multiple=multiple)
    packed = [index for rank in plan for micro_batch in rank for index in micro_batch]
    assert sorted(packed) == list(range(len(lengths))), "each index exactly once"
    tokens = [sum(lengths[i] for i in micro_batch) for rank in plan for micro_batch in rank]
    assert max(tokens) <= budget, f"a micro-batch has {max(tokens)} tokens, the budget is {budget}"
    counts = {len(rank) for rank in plan}
    assert len(plan) == ranks
    assert len(counts) == 1, f"ranks have different numbers of micro-batches: {counts}"
    assert counts.pop() % multiple == 0


@given(BATCHES, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_no_rank_has_more_micro_batches_than_tokens_and_first_fit_demand(
    batch: tuple[int, list[int]], ranks: int
) -> None:
    budget, lengths = batch
    (first, *_) = pack_batch(lengths, ranks, budget)
    # Two bins that best-fit left less than half full would have been one.
    needed = 2 * sum(lengths) / budget + 1
    assert len(first) <= -(-needed // ranks), f"{len(first)} micro-batches for {lengths}"


@given(BATCHES, st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_packing_is_a_function_of_its_arguments(batch: tuple[int, list[int]], ranks: int) -> None:
    budget, lengths = batch
    assert pack_batch(lengths, ranks, budget) == pack_batch(list(lengths), ranks, budget)


@given(st.lists(st.integers(1, 64), min_size=16, max_size=64), st.integers(2, 4))
@settings(max_examples=100, deadline=None)
def test_with_room_to_spare_no_rank_works_longer_than_another_by_more_than_one_sequence(
    lengths: list[int], ranks: int
) -> None:
    cost = CostModel(hidden_size=8)
    plan = pack_batch(lengths, ranks, budget=sum(lengths), cost=cost)
    work = [sum(cost(lengths[i]) for batch in rank for i in batch) for rank in plan]
    longest = cost(max(lengths))
    assert max(work) - min(work) <= longest * (1 + 1e-12), f"work per rank: {work}"


def test_attention_makes_one_long_sequence_cost_more_than_many_short_ones() -> None:
    cost = CostModel(hidden_size=16)
    assert cost(1024) > 3 * sum(cost(64) for _ in range(16))


def test_an_empty_batch_gives_every_rank_one_empty_micro_batch() -> None:
    assert pack_batch([], ranks=2, budget=8) == (((),), ((),))


def test_a_sequence_longer_than_the_budget_names_the_setting() -> None:
    with pytest.raises(DataError, match=r"micro_batch_tokens=8.*at least 9"):
        pack_batch([3, 9], ranks=1, budget=8)
