"""Servers: what fits into their memory, how fast they decode, and how a stage ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_vr.cluster.planner.hardware import DEVICES
from megatron_vr.cluster.planner.rates import DecodeRates
from megatron_vr.cluster.planner.sampling import Asked, Server, sampling_seconds
from megatron_vr.models.known import known_architecture

H100 = DEVICES["h100"]
SEVEN = known_architecture("Qwen/Qwen2.5-7B-Instruct")
THIRTY_TWO = known_architecture("Qwen/Qwen2.5-32B-Instruct")
# Nothing but the memory: no host, no sums over GPUs, all of the bandwidth.
BARE = DecodeRates(
    step=0.0, sequence=0.0, weights=1.0, cache=1.0, product=1.0, prefill=1.0, hop=0.0, nvlink=1e9
)


def test_keys_and_values_of_a_token() -> None:
    # 28 layers, 4 heads of 128, two kinds, two bytes.
    assert Server(SEVEN, H100, 1, 1).cache_per_token == 28 * 4 * 128 * 2 * 2


def test_the_cache_has_what_the_weights_leave() -> None:
    server = Server(SEVEN, H100, 1, 1)
    left = (79.1 * 0.9 - 4) * 2**30 - 2 * server.parameters
    assert server.cache_tokens == pytest.approx(left / 57344)


def test_32b_in_bfloat16_has_little_room_beside_it_on_one_80_gb_gpu() -> None:
    assert Server(THIRTY_TWO, H100, 1, 256).running(32_764) < 1
    assert Server(THIRTY_TWO, H100, 2, 256).running(32_764) > 1


def test_a_lone_sequence_reads_the_weights_and_its_cache_once_for_each_token() -> None:
    server = Server(SEVEN, H100, 1, 1, rates=BARE)
    # The embedding's rows of one token are nothing beside the output layer.
    weights = 2 * (server.parameters - SEVEN.vocab_size * SEVEN.hidden_size)
    assert server.step(1, 1000) == pytest.approx((weights + 1000 * 57344) / 3.35e12)


def test_two_gpus_halve_what_is_read() -> None:
    one, two = (Server(SEVEN, H100, gpus, 1, rates=BARE) for gpus in (1, 2))
    assert one.step(1, 1000) / two.step(1, 1000) == pytest.approx(2)


def test_many_sequences_are_bound_by_the_products() -> None:
    server = Server(SEVEN, H100, 1, 4096, rates=BARE)
    more = server.step(2000, 0) / server.step(1000, 0)
    assert more == pytest.approx(2)


def test_no_more_run_at_once_than_the_client_sends() -> None:
    assert Server(SEVEN, H100, 1, 7).running(100) == 7


def test_one_generation_takes_its_tokens_steps() -> None:
    server = Server(SEVEN, H100, 1, 8)
    asked = Asked(1, 100, 500, 500, 0.0, 0.0)
    assert sampling_seconds(server, 1, asked) == pytest.approx(500 * server.step(1, 350))


def test_a_full_server_works_at_its_steady_rate_but_for_the_end() -> None:
    """Equal lengths, no prompts: 1000 waves of 10, of which half a wave is left in the end."""
    server = Server(SEVEN, H100, 1, 10, rates=BARE)
    asked = Asked(10_000, 0, 200, 200, 0.0, 0.0)
    steady = (10_000 * 200 - 10 * 100) / 10 * server.step(10, 100)
    end = 200 * server.step(5, 100)
    assert sampling_seconds(server, 1, asked) == pytest.approx(steady + end, rel=1e-3)


def test_generations_that_begin_together_end_with_the_longest() -> None:
    """Eight at once, of 500 tokens on average, and one of 2000: two run on average."""
    server = Server(SEVEN, H100, 1, 8, rates=BARE)
    asked = Asked(8, 0, 500, 2000, 0.0, 0.0)
    expected = 2000 * server.step(2, asked.context)
    assert sampling_seconds(server, 1, asked) == pytest.approx(expected)


@given(st.integers(1, 100_000), st.integers(1, 16), st.integers(100, 5000))
def test_more_servers_or_fewer_generations_never_take_longer(
    count: int, servers: int, tokens: int
) -> None:
    server = Server(SEVEN, H100, 1, 256)
    asked = Asked(count, 300, tokens, 32_000, 0.7, 0.0)
    seconds = sampling_seconds(server, servers, asked)
    assert sampling_seconds(server, servers + 1, asked) <= seconds * (1 + 1e-9)
    assert seconds <= sampling_seconds(server, servers, replace(asked, count=count + 1)) * (
        1 + 1e-9
    )
    # The longest runs to its end, and never faster than alone.
    assert seconds >= 32_000 * server.step(0, 0)


def test_weights_without_room_for_a_sequence_are_told() -> None:
    with pytest.raises(ValueError, match="no memory"):
        sampling_seconds(Server(THIRTY_TWO, H100, 1, 1), 1, Asked(1, 300, 500, 32_000, 0.7, 0.0))
