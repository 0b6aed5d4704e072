"""What the finished stages of a run tell about those still to come."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pyarrow.compute as pc

from megatron_vr.algorithm.plan import Node
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.stage_times import TRAININGS
from megatron_vr.traces.tables import SCORES
from megatron_vr.training.metrics import METRICS_FILE

# Of the metrics' last lines: the first steps are slower.
LINES = 20


@dataclass(frozen=True)
class SoFar:
    """`assumed` with what was measured in this run laid over it; `notes` say what that was."""

    assumed: PlanAssumptions
    notes: tuple[str, ...]


def look_back(nodes: Iterable[Node], assumed: PlanAssumptions, given: frozenset[str]) -> SoFar:
    """Real lengths and speeds of `nodes` that are done. What the user has `given` stays."""
    found: dict[str, Any] = {}
    notes: list[str] = []
    for node in nodes:
        if not node.folder.done:
            continue
        if node.stage == "score":
            lengths = node.folder.read(SCORES, ["trace_length"]).column("trace_length")
            if len(lengths):
                mean = pc.mean(lengths).as_py()
                found |= {"trace_tokens": max(1, round(mean))}
                found |= {"spread": pc.stddev(lengths).as_py() / mean}
                notes.append(f"{node.label}: traces have {mean:,.0f} tokens on average")
        elif node.stage in TRAININGS:
            speed = _tflops(node)
            if speed is not None:
                found["train_tflops_per_gpu"] = speed
                notes.append(f"{node.label}: {speed:,.4g} TFLOP/s per GPU")
        elif node.label == "sample-policy":
            accepted = node.folder.summary().get("accepted")
            if accepted is not None:
                found["correct"] = accepted
                notes.append(f"{node.label}: {accepted:.0%} accepted")
    used = {key: value for key, value in found.items() if key not in given}
    return SoFar(assumed.model_copy(update=used), tuple(notes))


def _tflops(node: Node) -> float | None:
    file = node.path / METRICS_FILE
    if not file.is_file():
        return None
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    known = [line["tflops"] for line in lines[-LINES:] if line.get("tflops")]
    return median(known) if known else None
