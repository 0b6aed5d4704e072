"""answer: N answers per posterior trace from the policy, given `prompt ids + trace ids`; graded."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from megatron_vr.algorithm.context import Context, model_folder
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Advance
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.algorithm.stages.graded import grade_answers
from megatron_vr.algorithm.stages.sampling import sampling_of
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.rollout.engine import Request
from megatron_vr.rollout.open import open_engine
from megatron_vr.rollout.seeds import seed_for
from megatron_vr.traces.columns import share, usable
from megatron_vr.traces.tables import ANSWERS, TRACES


@dataclass(frozen=True)
class Asked:
    """One trace that is answered N times."""

    trace_id: str
    problem: Problem
    prefix: tuple[int, ...]  # policy prompt and the trace's own ids


def run(node: Node, context: Context) -> Finished:
    """One graded row per usable trace and n."""
    model = model_folder(node.inputs["model"])
    prompts = context.format(node, model)
    asked = _asked(node, context.problems(node), prompts)
    settings = node.settings.answers
    sampling = sampling_of(settings, prompts)
    with open_engine(node.settings.engine, model) as engine:

        def make(span: range, advance: Advance) -> pa.Table:
            items = [(asked[i // settings.per_trace], i % settings.per_trace) for i in span]
            requests = [
                Request(
                    id=f"{trace.trace_id}#{n}",
                    prompt_ids=trace.prefix,
                    seed=seed_for(node.settings.run.seed, "answer", trace.trace_id, n),
                )
                for trace, n in items
            ]
            completions = engine.generate(requests, sampling, advance)
            answers = [completion.token_ids for completion in completions]
            graded = grade_answers(node, prompts, [trace.problem for trace, _ in items], answers)
            rows = [
                {"trace_id": trace.trace_id, "problem_id": trace.problem.id, "index": n, **verdict}
                for (trace, n), verdict in zip(items, graded, strict=True)
            ]
            return pa.Table.from_pylist(rows, ANSWERS)

        total = len(asked) * settings.per_trace
        parts = context.work_parts(node, total, node.settings.engine.part_size, "answers", make)
    if not context.world.is_main:
        return Finished(parts)
    table = node.folder.read_parts(parts, ANSWERS, ["accepted", "reason"])
    timed_out = table.column("reason").to_pylist().count("timed out")
    return Finished(
        parts,
        {
            "answers": table.num_rows,
            "accepted": share(table.column("accepted")),
            "timed_out": timed_out,
        },
    )


def _asked(node: Node, problems: list[Problem], prompts: PromptFormat) -> list[Asked]:
    by_id = {problem.id: problem for problem in problems}
    traces = node.inputs["traces"].folder.read(
        TRACES, ["trace_id", "problem_id", "trace_ids", "complete"]
    )
    faults = usable(traces, node.settings.traces.drop_longer_than)
    asked = []
    for row, fault in zip(traces.to_pylist(), faults, strict=True):
        if not fault:
            problem = by_id[row["problem_id"]]
            prefix = (*prompts.policy_prompt(problem.question), *row["trace_ids"])
            asked.append(Asked(row["trace_id"], problem, prefix))
    return asked
