"""The fastest layouts that fit: every split that is allowed, on a given number of GPUs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Final, Literal

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import Costs, Nodes
from megatron_vr.cluster.planner.memory import Memory, training_memory
from megatron_vr.cluster.planner.steps import Batch, Lengths, StepTime, training_step
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.errors import SettingsError
from megatron_vr.parallel.layout import Layout, check_layout

RECOMPUTES: Final[tuple[Literal["none", "selective", "full"], ...]] = ("none", "selective", "full")
# Model chunks on a pipeline rank; more of them only send more.
MOST_CHUNKS = 8


@dataclass(frozen=True)
class Candidate:
    """One way to compute a training, what it needs and how long its step takes."""

    case: Case
    memory: Memory
    step: StepTime


def search(
    case: Case, nodes: Nodes, sequences: int, lengths: Lengths, limit_bytes: int
) -> list[Candidate]:
    """All cases of the model and GPUs of `case` that fit into `limit_bytes`, the fastest first.

    A step has `sequences` of `lengths`. Of equally fast ones the one with more free memory leads.
    """
    found = []
    for one in cases(case, nodes):
        memory = training_memory(one)
        if memory.total <= limit_bytes:
            step = training_step(Costs(one, nodes), Batch.of(one, sequences, lengths))
            found.append(Candidate(one, memory, step))
    return sorted(found, key=lambda one: (-one.step.tokens_per_gpu, one.memory.total))


def cases(case: Case, nodes: Nodes) -> Iterator[Case]:
    """Every allowed split, recomputation and precision of products of `case`.

    Tensor-parallel ranks share a node, and are sequence-parallel too: that costs no time. FP8 only
    with Transformer Engine, on devices that have it: the case's own, or tensorwise.
    """
    has_fp8 = nodes.device.fp8_tflops is not None and case.spec == "te"
    precisions = (None, case.fp8 or Fp8Settings(recipe="tensorwise")) if has_fp8 else (None,)
    for layout in layouts(case, nodes.per_node):
        for recompute, fp8 in product(RECOMPUTES, precisions):
            yield replace(case, layout=layout, recompute=recompute, fp8=fp8)


def layouts(case: Case, per_node: int) -> Iterator[Layout]:
    """Every split of the model of `case` that is allowed on its ranks, `per_node` on a node."""
    ranks = case.processes
    for tensor, context, pipeline in product(
        _divisors(per_node), _divisors(ranks), _divisors(ranks)
    ):
        per_stage = case.architecture.layers // pipeline
        chunks = [n for n in _divisors(per_stage) if 1 < n <= MOST_CHUNKS] if pipeline > 1 else []
        # Every sequence is cut into two pieces for each context rank, and these over tensor ranks.
        if context > 1 and case.micro_batch_tokens % (2 * context):
            continue
        for virtual in (None, *chunks):
            layout = Layout(tensor, pipeline, context, virtual, sequence_parallel=tensor > 1)
            if _allowed(layout, case):
                yield layout


def _allowed(layout: Layout, case: Case) -> bool:
    try:
        check_layout(layout, case.architecture, case.processes)
    except SettingsError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
