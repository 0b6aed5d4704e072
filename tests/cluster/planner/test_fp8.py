"""What FP8's settings change in the planner: closed forms, worked out by hand. Nothing here ran on
a GPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import Costs, Micro, Nodes
from megatron_vr.cluster.planner.hardware import DEVICES
from megatron_vr.cluster.planner.in_flight import in_flight
from megatron_vr.cluster.planner.memory import kept_for_backward, layer_memory, training_memory
from megatron_vr.cluster.planner.report import snippet
from megatron_vr.cluster.planner.search import Candidate, cases
from megatron_vr.cluster.planner.steps import Batch, Lengths, training_step
from megatron_vr.cluster.planner.widths import Widths
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.known import known_architecture
from megatron_vr.parallel.layout import Layout
from tests.cluster.planner.shapes import SMALL

QWEN = known_architecture("Qwen/Qwen2.5-32B-Instruct")
TP8 = Layout(tensor=8, sequence_parallel=True)
NODES = Nodes(DEVICES["h100"], 8)
# Matrices of one layer: queries and output 5120 × 5120, keys and values 5120 × 1024, MLP.
LAYER = 2 * 5120 * 5120 + 2 * 5120 * 1024 + 3 * 5120 * 27648


def case(fp8: dict[str, Any] | None, layout: Layout = TP8, **changes: Any) -> Case:
    settings = None if fp8 is None else Fp8Settings(**{"recipe": "tensorwise", **fp8})
    return replace(Case(QWEN, layout, 32, 32768, fp8=settings), **changes)


def weights(one: Case) -> int:
    return training_memory(one).weights


def test_fp8_parameters_take_two_bytes_a_number_and_not_four() -> None:
    # Kept in bfloat16 with two copies in FP8, or in the two copies alone.
    assert weights(case({})) - weights(case(None)) == 64 * LAYER // 8 * 2
    saved = weights(case({})) - weights(case({"params": True}))
    assert saved == pytest.approx(64 * LAYER // 8 * 2, rel=1e-5)  # but for the buffers' padding


def test_fp8_parameters_have_gradients_and_main_weights_as_others_have() -> None:
    usual, kept = (training_memory(case({"params": params})) for params in (False, True))
    assert kept.gradients == pytest.approx(usual.gradients, rel=1e-5)
    assert kept.optimizer == pytest.approx(usual.optimizer, rel=1e-5)


def test_layers_in_bfloat16_have_no_copies_of_their_weights() -> None:
    some = case({"first_layers_bf16": 2, "last_layers_bf16": 1})
    assert weights(case({})) - weights(some) == 3 * LAYER // 8 * 2


@pytest.mark.parametrize(("rank", "layers"), [(0, 2), (1, 1)])
def test_layers_in_bfloat16_keep_more_on_the_ranks_that_have_them(rank: int, layers: int) -> None:
    layout = replace(TP8, pipeline=2)
    all_fp8 = case({}, layout)
    some = case({"first_layers_bf16": 2, "last_layers_bf16": 1}, layout)
    more = layer_memory(case(None, layout)).kept - layer_memory(all_fp8).kept
    passes = in_flight(layout, rank)
    found = kept_for_backward(some, rank) - kept_for_backward(all_fp8, rank)
    assert more > 0
    assert found == passes * layers * more


def test_interleaved_stages_know_where_the_first_and_the_last_layers_are() -> None:
    layout = replace(TP8, pipeline=2, virtual_pipeline=2)
    some = case({"first_layers_bf16": 20, "last_layers_bf16": 3}, layout)
    # Layers 0–15 and 32–47 are on rank 0, the others on rank 1.
    assert [some.held(rank) for rank in (0, 1)] == [(16, 16), (25, 7)]


def test_a_step_takes_the_time_of_each_layer_in_its_precision() -> None:
    micro = Micro(tokens=8192.0, pairs=8192 * 4096.0, targets=0.0)
    batch = Batch(32, Lengths(8192.0, 0.0, 8192.0), 1, micro)

    def compute(fp8: dict[str, Any] | None) -> float:
        return training_step(Costs(case(fp8), NODES), batch).compute

    none, every = compute(None), compute({})
    some = compute({"first_layers_bf16": 8, "last_layers_bf16": 8})
    assert every < none
    assert some == pytest.approx(every + 16 / 64 * (none - every))


def test_a_stage_in_bfloat16_holds_up_the_others() -> None:
    layout = Layout(pipeline=4)
    batch = Batch(32, Lengths(100.0, 0.0, 100.0), 8, Micro(8192.0, 8192 * 4096.0, 0.0))

    def step(fp8: dict[str, Any] | None) -> Any:
        return training_step(Costs(case(fp8, layout), NODES), batch)

    # All of the first stage's layers: it is as slow as without FP8, its successors are not.
    first = step({"first_layers_bf16": 16})
    assert first.compute == pytest.approx(step(None).compute)
    assert first.bubble == pytest.approx(step({}).bubble)


def test_fp8_parameters_are_gathered_in_one_byte() -> None:
    layout = Layout(tensor=2, sequence_parallel=True)
    batch = Batch(32, Lengths(100.0, 100.0, 100.0), 1, Micro(100.0, 5050.0, 100.0))

    def exchange(fp8: dict[str, Any]) -> float:
        return training_step(Costs(case(fp8, layout), NODES), batch).exchange

    tables = 2 * 152064 * 5120
    usual = (4 + 2) * (64 * LAYER + tables)
    saved = {"params": True, "first_layers_bf16": 4}
    assert exchange(saved) / exchange({}) == pytest.approx(1 - 60 * LAYER / usual)


@pytest.mark.parametrize(("recipe", "unit"), [("tensorwise", 16), ("blockwise", 128)])
def test_packs_are_padded_to_what_the_kernels_take(recipe: str, unit: int) -> None:
    one = case({"recipe": recipe}, replace(TP8, context=2), micro_batch_tokens=30_000)
    # Each of 8 tensor ranks has a whole number of units of the 15,000 places on a context rank.
    assert Widths.of(one).tokens == -(-15_000 // (8 * unit)) * 8 * unit
    assert Widths.of(one.without_fp8).tokens == Widths.of(one).tokens
    lengths = Lengths(5000.0, 4000.0, 6000.0)
    padded, usual = (Batch.of(c, 64, lengths) for c in (one, replace(one, fp8=None)))
    # From 0 to one short of 2 × 8 units, as likely each.
    assert padded.micro.tokens - usual.micro.tokens == 2 * 8 * unit / 2
    assert padded.micro.targets == usual.micro.targets
    assert padded.count == usual.count


def test_blocks_have_scales_of_their_own() -> None:
    tensor, block = (layer_memory(case({"recipe": r})).kept for r in ("tensorwise", "blockwise"))
    # A float32 for 128 numbers of both norms' outputs, attention's output, SwiGLU's output.
    numbers = 32768 * (2 * 640 + 640 + 3456)
    assert block - tensor == numbers * 4 // 128


def test_the_search_takes_the_settings_own_fp8_and_a_snippet_tells_it() -> None:
    own = Fp8Settings(recipe="blockwise", last_layers_bf16=1, params=True)
    usual = Case(SMALL, Layout(), 4, 512, overlap=True)
    assert {one.fp8 for one in cases(replace(usual, fp8=own), NODES)} == {None, own}
    step = training_step(Costs(usual, NODES), Batch.of(usual, 64, Lengths(100.0, 80.0, 120.0)))
    shown = snippet(Candidate(replace(usual, fp8=own), training_memory(usual), step))
    assert Fp8Settings(**yaml.safe_load(shown)["model"]["fp8"]) == own
