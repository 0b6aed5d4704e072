"""Costs of layers and steps against closed forms worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import Costs, Micro, Nodes
from megatron_vr.cluster.planner.hardware import Device
from megatron_vr.cluster.planner.rates import TrainRates
from megatron_vr.cluster.planner.steps import (
    Batch,
    Lengths,
    parameters_per_rank,
    scoring_step,
    training_step,
)
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.flops import ModelFlops
from tests.cluster.planner.shapes import SMALL

# 989.4 TFLOP/s in bfloat16, and round numbers for the rest.
DEVICE = Device("NVIDIA H100 80GB HBM3", 80.0, 2000.0, 1.0, 100.0, 10.0, (9, 0))
PEAK = 989.4e12
# Everything at its full speed, so that times are operations and bytes alone.
IDEAL = TrainRates(
    product=1.0,
    fp8_product=1.0,
    small=0.0,
    attention_forward=1.0,
    attention_backward=1.0,
    memory=1e9,
    nvlink=1.0,
    network=1.0,
    host=0.0,
    lost=0.0,
)
LENGTHS = Lengths(100.0, 100.0, 100.0)
MICRO = Micro(tokens=1000.0, pairs=10 * 100 * 101 / 2, targets=1000.0)


def costs(rates: TrainRates = IDEAL, per_node: int = 8, **changes: object) -> Costs:
    usual = Case(SMALL, Layout(), 1, 1000)
    return Costs(replace(usual, **changes), Nodes(DEVICE, per_node), rates)  # type: ignore[arg-type]


def test_a_product_takes_its_operations_over_the_reached_share_of_the_peak() -> None:
    rates = replace(IDEAL, product=0.5, small=10.0)
    slower = 1 + 10 * (1 / 20 + 1 / 40 + 1 / 50)
    expected = 2 * 20 * 40 * 50 / (0.5 * PEAK) * slower
    assert costs(rates).product(20, 40, 50) == pytest.approx(expected)


def test_one_layers_products_by_hand() -> None:
    # Of each token: queries 64, keys and values 2 × 32, output 64, gate and up 2 × 192, down 192.
    weights = 64 * (64 + 64) + 64 * 64 + 64 * 384 + 192 * 64
    assert costs().products(MICRO) == pytest.approx(2 * 1000 * weights / PEAK)


def test_forward_and_backward_of_an_ideal_device_are_the_models_operations() -> None:
    """But for attention's backward pass, which has 5 products for 2 where the model counts 4."""
    case = Case(SMALL, Layout(), 1, 1000)
    step = training_step(costs(), Batch(10, LENGTHS, 1, MICRO))
    flops = ModelFlops.of(SMALL)
    attention = MICRO.pairs * flops.attention
    more = (2.5 - 2) * attention
    memory = 1e12 * IDEAL.memory
    moved = 8 * SMALL.layers  # of gradients and activations: nothing beside 10²¹ bytes a second
    expected = (step.operations + more) / PEAK + moved / memory
    assert step.compute == pytest.approx(expected, rel=1e-6)
    # Of an average batch; 100 · 101 / 2 pairs in each of ten sequences.
    assert step.operations == flops.training(100, 100) * 10
    assert step.tokens_per_gpu == pytest.approx(1000 / step.seconds)
    assert case.data == 1


def test_recomputing_everything_costs_one_more_forward_pass() -> None:
    none, full = (costs(recompute=kind).layer(MICRO) for kind in ("none", "full"))
    assert full.forward == none.forward
    assert full.backward - none.backward == pytest.approx(none.forward)


def test_recomputing_attention_costs_its_forward_pass() -> None:
    none, some = (costs(recompute=kind).layer(MICRO) for kind in ("none", "selective"))
    flops = ModelFlops.of(SMALL)
    attention = MICRO.pairs * flops.attention / SMALL.layers / PEAK
    assert some.backward - none.backward == pytest.approx(attention)


def test_fp8_halves_the_products_and_nothing_else() -> None:
    usual, fp8 = costs(), costs(fp8=Fp8Settings(recipe="tensorwise"))
    assert usual.products(MICRO) / fp8.products(MICRO) == pytest.approx(2000 / 989.4)
    assert usual.attention(MICRO) == fp8.attention(MICRO)
    assert usual.head(MICRO, trains=True) == fp8.head(MICRO, trains=True)


def test_a_ring_among_tensor_ranks_moves_all_but_its_own_share() -> None:
    layout = Layout(tensor=2, sequence_parallel=True)
    # 1000 tokens of 64 bfloat16 numbers; half of them come from the other rank, over 100 GB/s.
    one = 1000 * 64 * 2 / 2 / 100e9
    exchange = costs(layout=layout, processes=2).tensor_exchange(MICRO)
    assert exchange.forward == pytest.approx(4 * one)
    assert exchange.backward == pytest.approx(2 * one)


def test_more_ranks_than_a_node_has_are_linked_by_the_network() -> None:
    assert costs(per_node=4).linked(1e9, 4) == pytest.approx(1e9 / 100e9)
    assert costs(per_node=4).linked(1e9, 8) == pytest.approx(1e9 / 10e9)


def test_keys_and_values_go_round_behind_attention() -> None:
    layout = Layout(context=2)
    sliced = costs(layout=layout, processes=2)
    attention = sliced.attention(MICRO)
    # Two kinds of 2 heads of 16 numbers, 500 tokens of the other rank.
    ring = 500 * 2 * 2 * 16 * 2 / 100e9
    exposed = sliced.context_exchange(MICRO, attention).forward
    assert exposed == pytest.approx(max(0.0, ring - attention.forward))
    assert exposed > 0


@pytest.mark.parametrize(("chunks", "share"), [(None, 3 / 8), (1, 3 / 8), (2, 3 / 16)])
def test_a_pipelines_bubble_is_its_stages_but_one_over_chunks_and_micro_batches(
    chunks: int | None, share: float
) -> None:
    """(p − 1) / (v m) of the time of the micro-batches, for p = 4 and m = 8."""
    architecture = replace(SMALL, layers=8)
    layout = Layout(pipeline=4, virtual_pipeline=chunks)
    case = costs(architecture=architecture, layout=layout, processes=4)
    headless = replace(MICRO, targets=0.0)
    step = training_step(case, Batch(80, LENGTHS, 8, headless))
    assert step.bubble / step.compute == pytest.approx(share)


def test_gradients_and_weights_of_the_data_ranks_take_a_ring_over_the_network() -> None:
    shared = costs(processes=4, per_node=2)
    step = training_step(shared, Batch(40, LENGTHS, 1, MICRO))
    # 4 bytes of gradient and 2 of weight; 3 of 4 shares arrive, by the adapters of both GPUs.
    size = 6 * parameters_per_rank(shared.case) * 3 / 4
    assert step.exchange == pytest.approx(size / 20e9)
    hidden = replace(shared, case=replace(shared.case, overlap=True))
    overlapped = training_step(hidden, Batch(40, LENGTHS, 1, MICRO))
    assert overlapped.exchange == pytest.approx(step.exchange * IDEAL.exposed_data)


def test_weights_of_a_rank_are_its_share_of_the_model() -> None:
    layer = 64 * (2 * 64 + 2 * 32) + 3 * 64 * 192
    whole = 4 * layer + 2 * 1000 * 64
    assert parameters_per_rank(Case(SMALL, Layout(), 1, 1)) == whole
    split = Case(SMALL, Layout(tensor=2, pipeline=2), 4, 1)
    assert parameters_per_rank(split) == whole / 4


def test_packs_are_spread_over_ranks_and_rounded_up_for_interleaved_pipelines() -> None:
    case = Case(SMALL, Layout(), 2, 1000)
    # 2,000 tokens for each rank, packs 95 % full: three of them.
    assert Batch.of(case, 40, LENGTHS).count == 3
    layout = Layout(pipeline=2, virtual_pipeline=2)
    assert Batch.of(replace(case, layout=layout, processes=4), 40, LENGTHS).count == 4
    batch = Batch.of(case, 40, LENGTHS)
    assert batch.micro.tokens * batch.count * case.data == pytest.approx(40 * 100)


def test_ranks_with_less_than_a_sequence_wait_for_the_one_that_has_it() -> None:
    case = Case(SMALL, Layout(), 64, 1000)
    alike = Batch.of(case, 16, LENGTHS)
    assert (alike.count, alike.micro.tokens) == (1, 100)
    # Half of 50 and half of 150 tokens: deviation 50, so the longest have about 250.
    uneven = Lengths(100, 100, (50**2 + 150**2) / 200)
    assert Batch.of(case, 16, uneven).micro.tokens == pytest.approx(250)
    # No longer than what a pack may hold.
    assert Batch.of(replace(case, micro_batch_tokens=200), 16, uneven).micro.tokens <= 200


def test_scoring_is_a_third_of_a_trainings_operations() -> None:
    batch = Batch(10, LENGTHS, 1, MICRO)
    training, scoring = training_step(costs(), batch), scoring_step(costs(), batch)
    assert scoring.operations == pytest.approx(training.operations / 3)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 64),
    st.integers(64, 4096),
)
def test_more_tokens_never_take_less_time_and_no_device_exceeds_its_peak(
    tensor: int, pipeline: int, sequences: int, length: int
) -> None:
    layout = Layout(tensor, pipeline, sequence_parallel=tensor > 1)
    case = Case(replace(SMALL, kv_heads=4), layout, tensor * pipeline, 8192)
    lengths = Lengths(length, length, length)
    one = Costs(case, Nodes(DEVICE, 8))
    less, more = (
        training_step(one, Batch.of(case, n, lengths)) for n in (sequences, sequences + 8)
    )
    assert more.seconds >= less.seconds
    assert 0 < less.mfu < 1
