"""What collecting a checkpoint holds in host memory is what the planner's model says.

On a CPU what a GPU would receive is received by the host, which the model counts for it anyway.
NCCL's own copy on a GPU is not seen here.
"""

from __future__ import annotations

import pytest

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.saving import gathered_on_host
from megatron_vr.cluster.planner.sharding import buffers_of
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout
from tests.cluster.planner.allocated import on_rank, saved
from tests.parallel.launch import run_ranks

# Large matrices: what else a save allocates must not count.
ARCHITECTURE = Architecture(
    family="qwen3",
    hidden_size=512,
    ffn_hidden_size=1024,
    layers=2,
    heads=8,
    kv_heads=4,
    head_dim=64,
    vocab_size=8000,
    max_positions=256,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied=False,
)


@pytest.mark.parametrize("ranks", [1, 2])
def test_every_rank_is_given_the_states_of_all(ranks: int) -> None:
    case = Case(ARCHITECTURE, Layout(), ranks, 64, spec="plain", log_prob_chunk=16)
    buffers = buffers_of(ARCHITECTURE, case.layout, case.data, 0, overlap=False)
    expected = gathered_on_host(buffers, ranks, item=2)
    for real in run_ranks(on_rank, ranks, case, saved):
        assert real["peak"] == pytest.approx(expected, rel=0.02)
