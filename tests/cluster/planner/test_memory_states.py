"""Weights, gradients and optimizer state of the planner's model are those of real ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.memory import moments
from megatron_vr.cluster.planner.sharding import buffers_of
from megatron_vr.models.architecture import Architecture, Experts
from megatron_vr.parallel.layout import Layout
from tests.cluster.planner.allocated import gradients, on_rank, states
from tests.parallel.launch import run_ranks

# Odd widths: nothing is a multiple of what Megatron pads to.
QWEN3 = Architecture(
    family="qwen3",
    hidden_size=36,
    ffn_hidden_size=74,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=10,
    vocab_size=101,
    max_positions=256,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied=False,
)
QWEN2 = replace(QWEN3, family="qwen2", tied=True)
EXPERTS = replace(QWEN3, family="qwen3_moe", experts=Experts(3, 2, 22, True))
ARCHITECTURES = (QWEN3, QWEN2, EXPERTS)
TENSOR = Layout(tensor=2, sequence_parallel=True)
INTERLEAVED = Layout(pipeline=2, virtual_pipeline=2)


def case(architecture: Architecture, layout: Layout, processes: int, dtype: str) -> Case:
    return Case(
        architecture=architecture,
        layout=layout,
        processes=processes,
        micro_batch_tokens=64,
        spec="plain",
        dtype=dtype,  # type: ignore[arg-type]
        log_prob_chunk=16,
    )


def states_of(rank: int, cases: list[Case]) -> list[dict[str, int]]:
    return [on_rank(rank, case, states) for case in cases]


def check(cases: list[Case], processes: int) -> None:
    """What ranks hold is what the model says of their pipeline rank; of the optimizer, which
    shards unevenly, the fullest rank of each."""
    found = run_ranks(states_of, processes, cases)
    for index, one in enumerate(cases):
        per_stage = processes // one.layout.pipeline
        for stage in range(one.layout.pipeline):
            ranks = [found[stage * per_stage + rank][index] for rank in range(per_stage)]
            buffers = buffers_of(one.architecture, one.layout, one.data, stage, one.overlap)
            expected = moments(one, stage)[0]
            for real in ranks:
                assert real["parameters"] == buffers.parameters, one
                assert real["weights"] == expected.weights, one
                assert real["gradients"] == expected.gradients, one
            assert max(real["optimizer"] for real in ranks) == expected.optimizer, one


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_rank_holds_what_the_model_says(dtype: str) -> None:
    check([case(architecture, Layout(), 1, dtype) for architecture in ARCHITECTURES], 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ranks_hold_what_the_model_says_in_every_layout(dtype: str) -> None:
    layouts = (Layout(), Layout(context=2), Layout(pipeline=2), INTERLEAVED, TENSOR)
    check([case(a, layout, 2, dtype) for a in ARCHITECTURES for layout in layouts], 2)


def test_four_ranks_that_split_model_and_data_hold_what_the_model_says() -> None:
    layouts = (Layout(), Layout(pipeline=2), Layout(tensor=2, context=2))
    check([case(QWEN2, layout, 4, "bfloat16") for layout in layouts], 4)


def test_overlapped_gradients_are_cut_into_the_buckets_the_model_says() -> None:
    # More than the 40 million numbers that a bucket has at least.
    wide = replace(QWEN3, vocab_size=570_001, hidden_size=72)
    overlapped = replace(case(wide, Layout(), 1, "bfloat16"), overlap=True)
    assert buffers_of(wide, Layout(), 1, 0, False).bucket > 40_000_000
    buffers = buffers_of(wide, Layout(), 1, 0, True)
    for real in run_ranks(on_rank, 1, overlapped, gradients):
        assert real["buckets"] > 1
        assert (real["buffer"], real["bucket"]) == (buffers.buffer, buffers.bucket)
