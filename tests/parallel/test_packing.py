"""The invariants of packing a global batch, for every batch there is."""

from __future__ import annotations

import numpy as np
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
    # No rank has more than the mean and one sequence, and two bins that best-fit left less than
    # half full would have been one.
    tokens = sum(lengths) / ranks + max(lengths, default=0)
    assert len(first) <= 2.01 * tokens / budget + 1, f"{len(first)} micro-batches for {lengths}"


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
    cost = CostModel(pair=1 / 48)
    plan = pack_batch(lengths, ranks, budget=sum(lengths), cost=cost)
    work = [sum(cost(lengths[i]) for batch in rank for i in batch) for rank in plan]
    longest = cost(max(lengths))
    assert max(work) - min(work) <= longest * (1 + 1e-12), f"work per rank: {work}"


def log_normal_lengths(count: int, seed: int) -> list[int]:
    """Trace lengths as they come: mean 6k tokens, none over 32k."""
    generator = np.random.default_rng(seed)
    draws = generator.lognormal(np.log(6000) - 0.32, 0.8, 4 * count).astype(int)
    return draws[(draws > 64) & (draws <= 32768)][:count].tolist()


@pytest.mark.parametrize("ranks", [4, 8, 16])
@pytest.mark.parametrize("seed", range(5))
def test_traces_of_log_normal_length_keep_all_ranks_equally_busy(ranks: int, seed: int) -> None:
    cost = CostModel.of(hidden=2560, ffn=9728, query=4096, key_value=1024)
    lengths = log_normal_lengths(32 * ranks, seed)
    plan = pack_batch(lengths, ranks, budget=32768, cost=cost)
    work = [sum(cost(lengths[i]) for pack in rank for i in pack) for rank in plan]
    imbalance = max(work) / (sum(work) / ranks) - 1
    assert imbalance < 0.03, f"the busiest of {ranks} ranks works {imbalance:.1%} longer"


@pytest.mark.parametrize("seed", range(3))
def test_many_traces_of_log_normal_length_fill_the_budget(seed: int) -> None:
    lengths = log_normal_lengths(4096, seed)
    plan = pack_batch(lengths, 8, budget=32768)
    packs = sum(len(rank) for rank in plan)
    filled = sum(lengths) / (packs * 32768)
    assert filled >= 0.98, f"{packs} packs are {filled:.1%} full"


def test_the_cost_of_a_sequence_is_that_of_its_matrix_products() -> None:
    # By hand, Qwen3-4B: 100 925 440 weights a layer, 2 · 4096 multiplications a pair.
    cost = CostModel.of(hidden=2560, ffn=9728, query=4096, key_value=1024)
    assert cost(1000) == pytest.approx(1000 + 8192 / 100_925_440 * 500_000)


def test_attention_makes_one_long_sequence_cost_more_than_many_short_ones() -> None:
    cost = CostModel(pair=1 / 96)
    assert cost(1024) > 3 * sum(cost(64) for _ in range(16))


def test_an_empty_batch_gives_every_rank_one_empty_micro_batch() -> None:
    assert pack_batch([], ranks=2, budget=8) == (((),), ((),))


def test_a_sequence_longer_than_the_budget_names_the_setting() -> None:
    with pytest.raises(DataError, match=r"micro_batch_tokens=8.*at least 9"):
        pack_batch([3, 9], ranks=1, budget=8)
