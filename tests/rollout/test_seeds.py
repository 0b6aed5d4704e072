from __future__ import annotations

import numpy as np

from megatron_vr.rollout.seeds import UniformStreams, seed_for


def test_seeds_never_change_between_releases() -> None:
    assert seed_for(0) == 5621864261735219286
    assert seed_for(7, "posterior", "grid-12", 3) == 5559311144375265069


def test_each_part_of_a_seeds_name_matters() -> None:
    names: list[tuple[str | int, ...]] = [
        (),
        (1,),
        ("1",),
        (1, 2),
        (2, 1),
        ("ab", "c"),
        ("a", "bc"),
        ("ab,c",),
        ("é",),
        ("e",),
    ]
    seeds = {seed_for(run, *name) for run in (0, 1) for name in names}
    assert len(seeds) == 2 * len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_rows_draws_are_the_philox_stream_of_its_seed_whatever_rows_are_dropped() -> None:
    seeds, steps = [5, 6, 7, 2**64 - 1], 2 * UniformStreams.BLOCK + 5
    expected = {
        seed: np.random.Generator(np.random.Philox(key=seed)).random(steps) for seed in seeds
    }
    streams = UniformStreams(seeds)
    for step in range(steps):
        if step == 3:
            streams.keep([3, 1, 0])
            seeds = [2**64 - 1, 6, 5]
        if step == UniformStreams.BLOCK + 9:
            streams.keep([0, 2])
            seeds = [2**64 - 1, 5]
        np.testing.assert_array_equal(streams.draw(), [expected[seed][step] for seed in seeds])
