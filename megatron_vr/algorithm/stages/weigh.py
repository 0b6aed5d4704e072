"""weigh: the importance weight ρ̃ of every trace, and which traces are learned from."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa
import torch

from megatron_vr.algorithm.choose import choose
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.objectives.weights import TraceWeights, trace_weights
from megatron_vr.problems.problem import Problem
from megatron_vr.traces.columns import usable
from megatron_vr.traces.tables import ANSWERS, ROLLOUTS, SCORES, TRACES, WEIGHTS

IMPOSSIBLE = float("-inf")


@dataclass(frozen=True)
class Evidence:
    """What is known of one trace; the defaults are those of a trace that cannot be used."""

    accuracy: float = 0.0
    policy_log_prob: float = 0.0
    sampler_log_prob: float = 0.0
    trace_length: int = 1
    answer_log_prob: float = IMPOSSIBLE
    answer_length: int = 1


def run(node: Node, context: Context) -> Finished:
    """One row per trace, on the main process (it is a second's work)."""
    if not context.world.is_main:
        return Finished(parts=1)
    problems = context.problems(node)
    position = {problem.id: index for index, problem in enumerate(problems)}
    traces = node.inputs["traces"].folder.read(
        TRACES, ["trace_id", "problem_id", "trace_ids", "complete"]
    )
    faults = usable(traces, node.settings.traces.drop_longer_than)
    evidence = _evidence(node)
    ids = traces.column("trace_id").to_pylist()
    owners = traces.column("problem_id").to_pylist()
    groups = [position[owner] for owner in owners]
    known = [
        evidence.get(trace, Evidence()) if not fault else Evidence()
        for trace, fault in zip(ids, faults, strict=True)
    ]
    weighed = _weigh(node, known, groups, problems)
    weights = weighed.weight.tolist()
    choices = choose(weights, groups, faults, node.settings.data.traces)
    table = pa.table(
        {
            "trace_id": ids,
            "problem_id": owners,
            "accuracy": [row.accuracy for row in known],
            "log_ratio": weighed.log_ratio.tolist(),
            "log_rho": weighed.log_rho.tolist(),
            "weight": weights,
            "chosen": [choice.chosen for choice in choices],
            "why": [choice.why for choice in choices],
        },
        schema=WEIGHTS,
    )
    node.folder.write_part(0, table)
    return Finished(1, _summary(weighed, faults))


def _evidence(node: Node) -> dict[str, Evidence]:
    """What is known of each trace, by trace id."""
    if node.settings.traces.sampler == "policy":
        rollouts = node.inputs["traces"].folder.read(ROLLOUTS, ["trace_id", "accepted"])
        return {
            row["trace_id"]: Evidence(accuracy=float(row["accepted"]))
            for row in rollouts.to_pylist()
        }
    accuracy: dict[str, list[bool]] = {}
    if "answers" in node.inputs:
        answers = node.inputs["answers"].folder.read(ANSWERS, ["trace_id", "accepted"])
        for row in answers.to_pylist():
            accuracy.setdefault(row["trace_id"], []).append(row["accepted"])
    columns = [name for name in SCORES.names if name != "engine_gap"]
    scores = node.inputs["scores"].folder.read(SCORES, columns).to_pylist()
    return {
        row.pop("trace_id"): Evidence(accuracy=fmean(accuracy.get(trace_id, [False])), **row)
        for row in scores
        for trace_id in [row["trace_id"]]
    }


def _weigh(
    node: Node, known: list[Evidence], groups: list[int], problems: list[Problem]
) -> TraceWeights:
    def column(name: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in known], dtype=dtype)

    settings = node.settings.weights
    of_policy = node.settings.traces.sampler == "policy"
    counts: Any = [problems[group].answer_count for group in groups]
    return trace_weights(
        estimator=settings.estimator,
        ratio="none" if of_policy else settings.ratio,  # π/π = 1
        normalise=settings.normalise,
        group=torch.tensor(groups),
        groups=len(problems),
        accuracy=column("accuracy"),
        policy_log_prob=column("policy_log_prob"),
        sampler_log_prob=column("sampler_log_prob"),
        trace_length=column("trace_length", torch.int64),
        answer_log_prob=column("answer_log_prob"),
        answer_length=column("answer_length", torch.int64),
        answer_count=torch.tensor(counts),
    )


def _summary(weighed: TraceWeights, faults: list[str]) -> dict[str, Any]:
    usable_ess = weighed.ess[weighed.has_weight]
    return {
        "traces": len(faults),
        "unfinished": faults.count("unfinished"),
        "over_long": faults.count("over-long"),
        "questions": weighed.has_weight.numel(),
        "questions_with_weights": int(weighed.has_weight.sum()),
        "mean_ess": float(usable_ess.mean()) if usable_ess.numel() else 0.0,
    }
