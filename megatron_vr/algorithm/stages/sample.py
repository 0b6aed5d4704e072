"""sample: K traces per question from the posterior, or complete graded rollouts of the policy."""

from __future__ import annotations

import pyarrow as pa

from megatron_vr.algorithm.context import Context, model_folder
from megatron_vr.algorithm.examples import sampler_prompt
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Advance
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.algorithm.stages.graded import grade_answers
from megatron_vr.algorithm.stages.sampling import sampling_of
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.rollout.engine import Completion, Request
from megatron_vr.rollout.open import open_engine
from megatron_vr.rollout.seeds import seed_for
from megatron_vr.traces.columns import share
from megatron_vr.traces.tables import ROLLOUTS, TRACES


def run(node: Node, context: Context) -> Finished:
    """One row per question and k; a policy's row also holds its answer and verdict."""
    problems = context.problems(node)
    model = model_folder(node.inputs["model"])
    prompts = context.format(node, model)
    of_policy = node.label == "sample-policy"
    per_question = (node.settings.rollouts if of_policy else node.settings.traces).per_question
    settings = node.settings.rollouts if of_policy else node.settings.traces
    sampling = sampling_of(settings, prompts, None if of_policy else prompts.trace_end)
    with open_engine(node.settings.engine, model) as engine:

        def make(span: range, advance: Advance) -> pa.Table:
            items = [(problems[i // per_question], i % per_question) for i in span]
            requests = [_request(node, prompts, problem, k) for problem, k in items]
            completions = engine.generate(requests, sampling, advance)
            rows = [
                _trace(node, prompts, problem, k, request, completion)
                for (problem, k), request, completion in zip(
                    items, requests, completions, strict=True
                )
            ]
            if not of_policy:
                return pa.Table.from_pylist(rows, TRACES)
            answers = [prompts.split(completion.token_ids)[1] for completion in completions]
            graded = grade_answers(node, prompts, [problem for problem, _ in items], answers)
            return pa.Table.from_pylist(
                [row | verdict for row, verdict in zip(rows, graded, strict=True)], ROLLOUTS
            )

        size = node.settings.engine.part_size
        parts = context.work_parts(node, len(problems) * per_question, size, "samples", make)
    return Finished(parts, _summary(node, context, parts, of_policy))


def _request(node: Node, prompts: PromptFormat, problem: Problem, k: int) -> Request:
    hinted = node.label == "sample-posterior" and node.settings.posterior.hint
    prompt = sampler_prompt(prompts, problem, problem.answer if hinted else None)
    seed = seed_for(node.settings.run.seed, node.label, node.iteration, problem.id, k)
    return Request(id=f"{problem.id}/{k}", prompt_ids=tuple(prompt), seed=seed)


def _trace(
    node: Node,
    prompts: PromptFormat,
    problem: Problem,
    k: int,
    request: Request,
    completion: Completion,
) -> dict[str, object]:
    trace_ids, _ = prompts.split(completion.token_ids)
    sampler = "policy" if node.label == "sample-policy" else "posterior"
    return {
        "trace_id": f"{problem.id}/{sampler}/{node.iteration}/{k}",
        "problem_id": problem.id,
        "index": k,
        "seed": request.seed,
        "iteration": node.iteration,
        "sampler": sampler,
        "prompt_ids": list(request.prompt_ids),
        "trace_ids": trace_ids,
        "trace_text": prompts.trace_text(trace_ids),
        "complete": prompts.trace_end.first_end(trace_ids) is not None,
        "finish_reason": completion.finish_reason,
        "engine_log_prob": sum(completion.log_probs[: len(trace_ids)]),
        "token_log_probs": list(completion.log_probs[: len(trace_ids)]),
    }


def _summary(node: Node, context: Context, parts: int, of_policy: bool) -> dict[str, object]:
    if not context.world.is_main:
        return {}
    columns = ["complete", *(["accepted"] if of_policy else [])]
    table = node.folder.read_parts(parts, ROLLOUTS if of_policy else TRACES, columns)
    shares = {name: share(table.column(name)) for name in columns}
    return {"samples": table.num_rows} | shares
