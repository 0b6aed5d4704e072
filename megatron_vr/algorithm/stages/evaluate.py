"""evaluate: the greedy answer and n sampled ones for each held-out question, graded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa

from megatron_vr.algorithm.context import Context, model_folder
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Advance
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.algorithm.stages.graded import grade_answers
from megatron_vr.algorithm.stages.sampling import sampling_of
from megatron_vr.evaluation.metrics import summarise
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.rollout.engine import Completion, Request
from megatron_vr.rollout.open import open_engine
from megatron_vr.rollout.seeds import seed_for
from megatron_vr.traces.tables import VERDICTS

GREEDY = -1
FEWEST_PARTS = 8  # so that several processes share even a small benchmark


def run(node: Node, context: Context) -> Finished:
    """One graded row per question and output; the summary is a row of the results table."""
    problems = context.problems(node)
    model = model_folder(node.inputs["model"])
    prompts = context.format(node, model)
    settings = node.settings.evaluation
    sampled = sampling_of(settings, prompts)
    greedy = replace(sampled, temperature=0.0, top_p=1.0)
    with open_engine(node.settings.engine, model) as engine:

        def make(span: range, advance: Advance) -> pa.Table:
            asked = [problems[i] for i in span]
            rows = []
            for sampling, indices in ((greedy, [GREEDY]), (sampled, list(range(settings.samples)))):
                items = [(problem, index) for problem in asked for index in indices]
                requests = [_request(node, prompts, problem, index) for problem, index in items]
                completions = engine.generate(requests, sampling)
                rows += _graded(node, prompts, items, completions)
            advance(len(asked))
            return pa.Table.from_pylist(rows, VERDICTS)

        fits = max(1, node.settings.engine.part_size // (settings.samples + 1))
        size = min(fits, max(1, -(-len(problems) // FEWEST_PARTS)))
        parts = context.work_parts(node, len(problems), size, "questions", make)
    if not context.world.is_main:
        return Finished(parts)
    return Finished(parts, _row(node.folder.read_parts(parts, VERDICTS), problems, settings.k))


def _request(node: Node, prompts: PromptFormat, problem: Problem, index: int) -> Request:
    seed = seed_for(node.settings.run.seed, "evaluate", problem.id, index)
    prompt = tuple(prompts.policy_prompt(problem.question))
    return Request(id=f"{problem.id}/{index}", prompt_ids=prompt, seed=seed)


def _graded(
    node: Node,
    prompts: PromptFormat,
    items: list[tuple[Problem, int]],
    completions: list[Completion],
) -> list[dict[str, Any]]:
    cuts = [prompts.split(completion.token_ids) for completion in completions]
    verdicts = grade_answers(node, prompts, [item for item, _ in items], [y for _, y in cuts])
    return [
        {
            "problem_id": problem.id,
            "index": index,
            "output_text": prompts.decode(completion.token_ids),
            "trace_length": len(trace),
            "complete": completion.finish_reason != "length",
            "accepted": verdict["accepted"],
            "reason": verdict["reason"],
        }
        for (problem, index), completion, (trace, _), verdict in zip(
            items, completions, cuts, verdicts, strict=True
        )
    ]


def _row(table: pa.Table, problems: list[Problem], k: int) -> dict[str, Any]:
    greedy: dict[str, bool] = {}
    samples: dict[str, list[bool]] = {}
    for row in table.select(["problem_id", "index", "accepted"]).to_pylist():
        if row["index"] == GREEDY:
            greedy[row["problem_id"]] = row["accepted"]
        else:
            samples.setdefault(row["problem_id"], []).append(row["accepted"])
    bands = {problem.id: problem.band for problem in problems}
    return dict(summarise(samples, greedy, bands, k))
