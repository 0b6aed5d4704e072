"""Shared prompts stand once in a pack, and everything else where it would stand alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vr.training.places import PackShape, shared


@st.composite
def packs(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, prompts and groups of 1 to 8 sequences; a group has one prompt's length."""
    count = draw(st.integers(1, 8))
    groups = np.array([draw(st.integers(0, 3)) for _ in range(count)])
    length = {group: draw(st.integers(0, 5)) for group in set(groups.tolist())}
    prompts = np.array([length[group] for group in groups.tolist()])
    return prompts + np.array([draw(st.integers(1, 6)) for _ in range(count)]), prompts, groups


@given(packs(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_every_place_of_every_sequence_is_there_and_prompts_of_a_group_once(
    pack: tuple[np.ndarray, np.ndarray, np.ndarray], tensor: int
) -> None:
    sizes, prompts, groups = pack
    found = shared(sizes, prompts, groups, PackShape(sequence_parallel=tensor))
    real = found.positions < sizes[found.owners]
    places = list(zip(found.owners[real].tolist(), found.positions[real].tolist(), strict=True))
    assert len(set(places)) == len(places)
    for owner in range(len(sizes)):
        own = {position for who, position in places if who == owner}
        after = set(range(prompts[owner], sizes[owner]))
        assert after <= own, f"sequence {owner} lacks places {after - own}"
    groups_of = [len(set(groups.tolist())), len(sizes)]
    spared = sum(prompts[i] for i in range(len(sizes)) if groups[i] in groups[:i].tolist())
    assert len(places) == sizes.sum() - spared, f"groups and sequences {groups_of}"
    assert len(found.owners) % tensor == 0


@given(packs())
@settings(max_examples=200, deadline=None)
def test_a_place_sees_all_that_stands_before_it_in_its_sequence_and_nothing_else(
    pack: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    sizes, prompts, groups = pack
    found = shared(sizes, prompts, groups, PackShape())
    for segment in found.segments:
        keys = np.concatenate([np.arange(*span) for span in segment.keys])
        for query in range(segment.count):
            place = segment.start + query
            seen = keys[: segment.key_count - segment.count + query + 1]
            assert seen[-1] == place
            assert found.positions[seen].tolist() == list(range(found.positions[place] + 1))
            assert len(set(groups[found.owners[seen]].tolist())) == 1
            own = seen[found.positions[seen] >= prompts[found.owners[place]]]
            assert set(found.owners[own].tolist()) <= {found.owners[place]}


def test_prompts_are_not_shared_with_context_parallelism() -> None:
    one = np.ones(2, dtype=np.int64)
    with pytest.raises(ValueError, match="context parallelism"):
        shared(2 * one, one, 0 * one, PackShape(context=2))
