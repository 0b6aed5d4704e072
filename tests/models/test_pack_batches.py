"""The sequences of a pack are attended in few padded batches that waste little."""

from __future__ import annotations

import random

import pytest
import torch

from megatron_vr.models.packing import PADDING_LIMIT, group_by_length, plan_pack, whole_sequences


def test_sequences_of_like_length_are_one_batch_in_their_order() -> None:
    assert group_by_length([10, 8, 6, 9]) == [[0, 1, 2, 3]]


def test_long_and_short_sequences_part() -> None:
    assert group_by_length([1000, 10, 9, 500, 8, 10]) == [[0, 3], [1, 5, 2, 4]]


def test_empty_sequences_and_empty_packs_need_no_batch() -> None:
    assert group_by_length([0, 3, 0]) == [[1]]
    assert group_by_length([]) == group_by_length([0, 0]) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_is_in_one_group_and_padding_stays_within_the_limit(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [int(draw.paretovariate(0.7)) for _ in range(draw.randint(1, 60))]
    groups = group_by_length(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        members = [lengths[index] for index in group]
        assert max(members) * len(members) <= PADDING_LIMIT * sum(members)
    assert len(groups) <= max(lengths).bit_length()


def test_a_plan_puts_every_token_back_where_it_was() -> None:
    plan = plan_pack(whole_sequences((0, 50, 50, 53, 55, 56)), torch.device("cpu"))
    tokens = torch.arange(56)
    assert len(plan.batches) > 1
    gathered = torch.cat([tokens[batch.queries].flatten()[batch.real] for batch in plan.batches])
    assert plan.order is not None
    assert gathered[plan.order].equal(tokens)


def test_sequences_of_equal_length_need_no_gathering() -> None:
    assert plan_pack(whole_sequences((0, 5, 10)), torch.device("cpu")).order is None
    assert plan_pack(whole_sequences((0, 5, 9)), torch.device("cpu")).order is not None
