"""The search over layouts against trying all of a small space."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import yaml

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import Costs, Nodes
from megatron_vr.cluster.planner.hardware import DEVICES
from megatron_vr.cluster.planner.memory import training_memory
from megatron_vr.cluster.planner.report import snippet
from megatron_vr.cluster.planner.search import cases, search
from megatron_vr.cluster.planner.steps import Batch, Lengths, training_step
from megatron_vr.config.settings import ParallelSettings
from megatron_vr.models.known import known_architecture
from megatron_vr.parallel.layout import Layout
from tests.cluster.planner.shapes import SMALL

H100 = DEVICES["h100"]
CASE = Case(SMALL, Layout(), 4, 512)
NODES = Nodes(H100, 2)
LENGTHS = Lengths(100.0, 80.0, 120.0)


def by_hand() -> set[tuple[object, ...]]:
    """Every split of 4 heads, 2 key/value heads and 4 layers on 4 GPUs, two on a node."""
    found: set[tuple[object, ...]] = set()
    for tensor, context, pipeline in product((1, 2), (1, 2, 4), (1, 2, 4)):
        if 4 % (tensor * context * pipeline):
            continue
        # One chunk for each rank, or as many as its layers divide into.
        for virtual, recompute in product((None, 2), ("none", "selective", "full")):
            if virtual == 2 and pipeline != 2:
                continue
            for fp8 in (None, "tensorwise"):
                found.add((tensor, context, pipeline, virtual, recompute, fp8))
    return found


def key(case: Case) -> tuple[object, ...]:
    layout = case.layout
    splits = (layout.tensor, layout.context, layout.pipeline, layout.virtual_pipeline)
    return (*splits, case.recompute, case.fp8.recipe if case.fp8 else None)


def test_every_allowed_split_is_tried_and_no_other() -> None:
    tried = [key(case) for case in cases(CASE, NODES)]
    assert set(tried) == by_hand()
    assert len(tried) == len(set(tried))


def test_tensor_ranks_share_a_node_and_are_sequence_parallel() -> None:
    for case in cases(replace(CASE, processes=16), NODES):
        assert case.layout.tensor <= 2
        assert case.layout.sequence_parallel == (case.layout.tensor > 1)


def test_devices_and_layers_without_fp8_are_not_asked_for_it() -> None:
    assert not any(case.fp8 for case in cases(CASE, Nodes(DEVICES["a100"], 2)))
    assert not any(case.fp8 for case in cases(replace(CASE, spec="plain"), NODES))


def test_the_fastest_that_fits_comes_first() -> None:
    every = list(cases(CASE, NODES))
    totals = sorted(training_memory(case).total for case in every)
    limit = totals[len(totals) // 2]
    fitting = [case for case in every if training_memory(case).total <= limit]
    assert 0 < len(fitting) < len(every)

    def seconds(case: Case) -> float:
        return training_step(Costs(case, NODES), Batch.of(case, 64, LENGTHS)).seconds

    found = search(CASE, NODES, 64, LENGTHS, limit)
    assert {key(one.case) for one in found} == {key(case) for case in fitting}
    assert found[0].step.seconds == min(seconds(case) for case in fitting)
    assert [one.step.seconds for one in found] == sorted(one.step.seconds for one in found)


def test_a_snippet_is_settings_of_its_layout() -> None:
    found = search(replace(CASE, overlap=True), NODES, 64, LENGTHS, H100.memory_bytes)
    for one in found:
        told = yaml.safe_load(snippet(one))
        parallel = ParallelSettings(**told["parallel"])
        layout = one.case.layout
        assert (parallel.tensor, parallel.pipeline) == (layout.tensor, layout.pipeline)
        assert (parallel.context, parallel.sequence) == (layout.context, layout.sequence_parallel)
        assert parallel.virtual_pipeline == layout.virtual_pipeline
        assert told["model"]["recompute"] == one.case.recompute
        assert told["model"]["fp8"] == ("tensorwise" if one.case.fp8 else None)


def test_32b_fits_16_h100s_only_split_in_four_or_more() -> None:
    """Weights and float32 gradients, 197 GB, are split over tensor and pipeline ranks alone."""
    big = known_architecture("Qwen/Qwen2.5-32B-Instruct")
    case = Case(big, Layout(), 16, 32_768, overlap=True)
    found = search(case, Nodes(H100, 8), 64, Lengths(6450, 6100, 8500), H100.memory_bytes)
    assert {one.case.layout.tensor * one.case.layout.pipeline for one in found} >= {8, 16}
    assert all(one.case.layout.tensor * one.case.layout.pipeline >= 4 for one in found)
