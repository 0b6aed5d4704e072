"""score: Σ log π(z|x), Σ log q(z|x,y') and Σ log π(y'|x,z) of every usable trace."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from megatron_vr.algorithm.context import Context, model_folder, title
from megatron_vr.algorithm.megatron import open_megatron
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.traces.columns import usable
from megatron_vr.traces.store import StageFolder, count_parts
from megatron_vr.traces.tables import SCORES, TRACES
from megatron_vr.training.scoring import Sequenced, score

SUMS = pa.list_(pa.float64())


@dataclass(frozen=True)
class Scored:
    """One trace as the policy and as its sampler see it."""

    trace_id: str
    under_policy: Sequenced  # spans: the trace, the reference answer
    under_sampler: Sequenced  # span: the trace


def run(node: Node, context: Context) -> Finished:
    """One row per usable trace; both models are loaded one after the other."""
    prompts = context.format(node, model_folder(node.inputs["policy"]))
    scored = _scored(node, context, prompts)
    for who in ("policy", "posterior"):
        _score_under(who, node, context, scored)
    parts = count_parts(len(scored), node.settings.scoring.part_size)
    if context.world.is_main:
        for index in node.folder.missing(parts):
            node.folder.write_part(index, _joined(node, scored, index))
    return Finished(parts, {"traces": len(scored)})


def _score_under(who: str, node: Node, context: Context, scored: list[Scored]) -> None:
    """Parts `policy-…` / `posterior-…` of sums, made side by side by the data-parallel ranks."""
    half = _half(node, who)
    if context.world.from_main(half.done):
        return
    if context.world.is_main:
        half.open()
    context.world.barrier()
    settings = node.settings.scoring
    sequences = [row.under_policy if who == "policy" else row.under_sampler for row in scored]
    parts = count_parts(len(sequences), settings.part_size)
    missing = context.world.from_main(half.missing(parts))
    megatron = open_megatron(node.settings, context.world)
    models = megatron.load(model_folder(node.inputs[who]))
    mine = missing[megatron.data_rank :: megatron.data_size]
    spans = [
        range(i * settings.part_size, min((i + 1) * settings.part_size, len(sequences)))
        for i in mine
    ]
    with context.talk.bar(
        f"{title(node)} under the {who}", sum(map(len, spans)), "traces"
    ) as advance:
        for index, span in zip(mine, spans, strict=True):
            sums = score(models, [sequences[i] for i in span], settings.micro_batch_tokens, advance)
            if megatron.writes:
                half.write_part(index, pa.table({"sums": pa.array([list(s) for s in sums], SUMS)}))
    context.world.barrier()
    if context.world.is_main:
        half.finish(parts)


def _half(node: Node, who: str) -> StageFolder:
    return StageFolder(node.path / who, node.folder.fingerprint)


def _scored(node: Node, context: Context, prompts: PromptFormat) -> list[Scored]:
    by_id = {problem.id: problem for problem in context.problems(node)}
    columns = ["trace_id", "problem_id", "prompt_ids", "trace_ids", "complete"]
    traces = node.inputs["traces"].folder.read(TRACES, columns)
    faults = usable(traces, node.settings.traces.drop_longer_than)
    rows = []
    for row, fault in zip(traces.to_pylist(), faults, strict=True):
        if fault:
            continue
        problem = by_id[row["problem_id"]]
        start = prompts.policy_prompt(problem.question)
        trace, answer = row["trace_ids"], prompts.reference_answer_ids(problem)
        first, middle = len(start), len(start) + len(trace)
        policy = Sequenced(
            token_ids=(*start, *trace, *answer),
            spans=((first, middle), (middle, middle + len(answer))),
        )
        seen = row["prompt_ids"]
        sampler = Sequenced((*seen, *trace), ((len(seen), len(seen) + len(trace)),))
        rows.append(Scored(row["trace_id"], policy, sampler))
    return rows


def _joined(node: Node, scored: list[Scored], index: int) -> pa.Table:
    schema = pa.schema({"sums": SUMS})
    policy = _half(node, "policy").read_part(index, schema).column("sums").to_pylist()
    sampler = _half(node, "posterior").read_part(index, schema).column("sums").to_pylist()
    first = index * node.settings.scoring.part_size
    rows = []
    for offset, (under_policy, under_sampler) in enumerate(zip(policy, sampler, strict=True)):
        row = scored[first + offset]
        (begin, end), (_, last) = row.under_policy.spans
        rows.append(
            {
                "trace_id": row.trace_id,
                "trace_length": end - begin,
                "policy_log_prob": under_policy[0],
                "sampler_log_prob": under_sampler[0],
                "answer_length": last - end,
                "answer_log_prob": under_policy[1],
            }
        )
    return pa.Table.from_pylist(rows, SCORES)
