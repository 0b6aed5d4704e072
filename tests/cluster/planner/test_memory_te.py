"""Transformer Engine's layers in the planner's model: closed forms and limits. Nothing here ran on
a GPU; what is compared is arithmetic, done by hand, and orders that must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.in_flight import in_flight
from megatron_vr.cluster.planner.memory import (
    host_memory,
    kept_for_backward,
    largest_micro_batch,
    layer_memory,
    moments,
    scoring_memory,
    training_memory,
)
from megatron_vr.cluster.planner.parameters import stage_parameters, stages_of
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout

QWEN32B = Architecture(
    family="qwen2",
    hidden_size=5120,
    ffn_hidden_size=27648,
    layers=64,
    heads=40,
    kv_heads=8,
    head_dim=128,
    vocab_size=152064,
    max_positions=32768,
    rope_theta=1e6,
    norm_eps=1e-5,
    tied=False,
)
TENSORWISE = Fp8Settings(recipe="tensorwise")
TP8 = Layout(tensor=8, sequence_parallel=True)
TP8_PP2 = replace(TP8, pipeline=2)


def case(**changes: Any) -> Case:
    return replace(Case(QWEN32B, TP8_PP2, 16, 32768), **changes)


def test_qwen_32b_has_the_parameters_that_its_release_states() -> None:
    # The sum of the tensors in Qwen/Qwen2.5-32B's safetensors index: 65,527,752,704 bytes.
    whole = sum(p.count for p in stage_parameters(QWEN32B, Layout(), stages_of(Layout(), 0)[0]))
    assert 2 * whole == 65_527_752_704


def test_a_layer_in_bfloat16_keeps_the_sum_of_its_parts() -> None:
    # Per token on one of 8 ranks: 2 norms (input and output, 5120 / 8 numbers of 2 bytes, 4 bytes
    # of 1/rms for each of 1/8 token), queries 640, keys and values 128 each, output 640, 5 heads'
    # log-sum-exp, SwiGLU's input 2 x 3456 and output 3456.
    norms = 2 * (2 * 2 * 640 + 4 // 8) + 1
    attention = 2 * (640 + 128 + 128 + 640) + 4 * 5
    mlp = 2 * 3 * 3456
    assert layer_memory(case()).kept == 32768 * (norms + attention + mlp)


def test_fp8_keeps_projections_inputs_in_one_byte_and_two_copies_of_their_weights() -> None:
    # Saved: 1 byte each of two norms' outputs and SwiGLU's; added: attention's output once more.
    saved = 2 * 640 + 3456 - 640
    assert layer_memory(case()).kept - layer_memory(case(fp8=TENSORWISE)).kept == 32768 * saved
    matrices = 64 * (5120 * (5120 + 2 * 1024) + 5120 * 5120 + 3 * 5120 * 27648) // 16
    more = training_memory(case(fp8=TENSORWISE)).weights - training_memory(case()).weights
    assert more == 2 * matrices


def test_full_recomputation_keeps_only_layer_inputs() -> None:
    none, full = case(), case(recompute="full")
    inputs = 2 * 32 * 32768 * 640 * 2  # two batches in flight, 32 layers
    assert inputs <= kept_for_backward(full, 0) <= 1.2 * inputs
    assert kept_for_backward(full, 0) < kept_for_backward(none, 0) / 10


def test_recomputing_flash_attention_alone_saves_nothing() -> None:
    # Only its statistics are dropped, and the projection's whole output is kept for the values.
    layer = layer_memory(case())
    assert layer.kept_selective >= layer.kept


@pytest.mark.parametrize(
    ("pipeline", "virtual", "expected"),
    [(1, None, [1]), (4, None, [4, 3, 2, 1]), (2, 2, [5, 3]), (4, 5, [23, 21, 19, 17])],
)
def test_earlier_ranks_keep_more_batches(
    pipeline: int, virtual: int | None, expected: list[int]
) -> None:
    # Warm-up passes of Megatron's schedules and the one before the first backward pass.
    layout = Layout(pipeline=pipeline, virtual_pipeline=virtual)
    assert [in_flight(layout, rank) for rank in range(pipeline)] == expected


def test_more_tokens_never_take_less_and_more_splitting_never_takes_more() -> None:
    tokens = [case(micro_batch_tokens=n) for n in (1024, 8192, 32768, 131072)]
    totals = [training_memory(one).total for one in tokens]
    assert totals == sorted(totals)
    layouts = (Layout(tensor=2, sequence_parallel=True), replace(TP8, tensor=4), TP8)
    kept = [layer_memory(case(layout=layout)).kept for layout in layouts]
    assert kept == sorted(kept, reverse=True)
    halves = case(layout=replace(TP8, context=2))
    assert layer_memory(halves).kept * 2 == layer_memory(case(layout=TP8)).kept


def test_sixteen_gpus_hold_32b_at_18_bytes_a_parameter_without_data_parallelism() -> None:
    memory = training_memory(case())
    states = memory.weights + memory.gradients + memory.optimizer
    assert states == pytest.approx(18 * 65_527_752_704 / 2 / 16, rel=0.001)


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    limit = 76 * 2**30
    one = case(overlap=True)
    found = largest_micro_batch(one, limit, multiple=512)
    assert found is not None
    assert found % 512 == 0
    assert training_memory(replace(one, micro_batch_tokens=found)).total <= limit
    assert training_memory(replace(one, micro_batch_tokens=found + 512)).total > limit


def test_no_micro_batch_fits_where_the_weights_do_not() -> None:
    assert largest_micro_batch(case(), 20 * 2**30) is None


def test_scoring_takes_weights_and_one_layer() -> None:
    one = case(layout=TP8, processes=8)
    memory = scoring_memory(one)
    assert (memory.gradients, memory.optimizer) == (0, 0)
    assert memory.weights == pytest.approx(65_527_752_704 / 8, rel=0.001)
    assert memory.total < training_memory(one).total / 4


def test_a_save_in_one_bucket_gathers_three_times_the_states_on_a_rank_of_its_own() -> None:
    # A shard to send, what is received, and a flat copy of it, 4 bytes for each parameter.
    (save,) = [memory for memory in moments(case(), 0) if memory.moment == "save"]
    idle = training_memory(case(micro_batch_tokens=1)).buffers
    assert save.buffers - idle >= 0
    assert save.buffers > 3 * save.gradients


def test_a_save_takes_more_of_the_host_than_the_states_of_its_ranks() -> None:
    # Every rank is given the main weights and moments of all that share its part: 12 bytes each.
    assert host_memory(case(), 8) > 8 * 12 * 65_527_752_704 / 2 / 16
