"""score: log π(z|x), log q(z|x,y') and log π(y'|x,z) of every usable trace, and how far the engine
that sampled the traces is from the trainer's own log-probs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from megatron_vr.algorithm.context import Context, model_folder, title
from megatron_vr.algorithm.megatron import open_megatron, told_of_scoring
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Whole
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.algorithm.stages.scored_traces import ScoredTraces, Who
from megatron_vr.errors import StageError
from megatron_vr.models.spec import shares_prompts
from megatron_vr.traces.agreement import Gaps
from megatron_vr.traces.durable import write_durably
from megatron_vr.traces.store import StageFolder, count_parts, part_items
from megatron_vr.traces.tables import LOG_PROBS, SCORES
from megatron_vr.training.scoring import Scored, score

# The half that is compared with the engine comes first: a wrong model shows before the other is
# scored.
HALVES: tuple[Who, ...] = ("posterior", "policy")


def run(node: Node, context: Context) -> Finished:
    """One row per usable trace; both models are loaded one after the other.

    Raises StageError where engine and trainer are further apart than the settings allow.
    """
    prompts = context.format(node, model_folder(node.inputs["policy"]))
    traces = ScoredTraces.read(node, context, prompts)
    parts = count_parts(len(traces), node.settings.scoring.part_size)
    for who in HALVES:
        _score_under(who, node, context, traces)
        if who == "posterior" and context.world.is_main:
            _check_gaps(node, _gaps(node, parts))
    if not context.world.is_main:
        return Finished(parts)
    for index in node.folder.missing(parts):
        node.folder.write_part(index, _joined(node, traces, index))
    gaps = _gaps(node, parts)
    return Finished(
        parts,
        {
            "traces": len(traces),
            "engine_gap_mean": gaps.mean,
            "engine_gap_p99": gaps.percentile(99),
            "engine_gap_largest": gaps.largest,
        },
    )


def _score_under(who: Who, node: Node, context: Context, traces: ScoredTraces) -> None:
    """The parts of one half, made side by side by the data-parallel ranks."""
    half = _half(node, who)
    if context.world.from_main(half.done):
        return
    if context.world.is_main:
        half.open()
    context.world.barrier()
    settings = node.settings.scoring
    parts = count_parts(len(traces), settings.part_size)
    missing = context.world.from_main(half.missing(parts))
    megatron = open_megatron(node.settings, context.world)
    models = megatron.load(model_folder(node.inputs[who]))
    mine = missing[megatron.data_rank :: megatron.data_size]
    label = f"{title(node)} under the {who}"
    if context.world.is_main:
        told = told_of_scoring(node.settings, model_folder(node.inputs[who]))
        context.talk.line(f"{label}: {told}")
    whole = _whole(who, node, traces, missing, mine)
    amount = sum(len(_span(node, traces, index)) for index in mine)
    with context.talk.bar(label, amount, "traces", whole) as bar:
        # The ranks of one model stop at the same part, or they would wait for each other: all meet
        # after each, also who has no part in the last round.
        for turn in range(-(-len(missing) // megatron.data_size)):
            for index in mine[turn : turn + 1]:
                span = _span(node, traces, index)
                sequences = [traces.sequence(row, who) for row in span]
                scored = score(
                    models,
                    sequences,
                    settings.micro_batch_tokens,
                    bar,
                    entropy=settings.per_token,
                    share_prompts=shares_prompts(node.settings.model.spec, megatron.layout),
                )
                bar.tokens(sum(len(sequence.token_ids) for sequence in sequences))
                if megatron.writes:
                    _write_half(half, index, scored, node, traces, span)
            context.meet(f"a part of {label}")
    context.world.barrier()
    if context.world.is_main:
        half.finish(parts)


def _whole(
    who: Who, node: Node, traces: ScoredTraces, missing: Sequence[int], mine: Sequence[int]
) -> Whole:
    """Both halves, as far as this one begins and other ranks take it."""
    half, others = _half(node, who), sorted({*missing} - {*mine})
    left = sum(len(_span(node, traces, index)) for index in missing)
    return Whole(
        node.path,
        total=len(HALVES) * len(traces),
        before=(HALVES.index(who) + 1) * len(traces) - left,
        others=lambda: sum(
            len(_span(node, traces, index)) for index in others if half.part(index).exists()
        ),
    )


def _span(node: Node, traces: ScoredTraces, index: int) -> range:
    """The traces of part `index`."""
    return part_items(index, node.settings.scoring.part_size, len(traces))


def _write_half(
    half: StageFolder,
    index: int,
    scored: Sequence[Scored],
    node: Node,
    traces: ScoredTraces,
    span: range,
) -> None:
    per_token = node.settings.scoring.per_token
    gaps = [Gaps.of([], [])] * len(scored)
    if half.path.name == "posterior":
        gaps = [
            Gaps.of(found.log_probs, traces.values("token_log_probs", row))
            for row, found in zip(span, scored, strict=True)
        ]
        # Before the part: where the part is, its gaps are too.
        content = json.dumps(Gaps.joined(gaps).to_json())
        write_durably(_gaps_file(half, index), content + "\n")
    rows = [
        {
            "sums": list(found.sums),
            "engine_gap": gap.mean,
            "token_log_probs": found.log_probs if per_token else None,
            "token_entropies": found.entropies if per_token else None,
        }
        for found, gap in zip(scored, gaps, strict=True)
    ]
    half.write_part(index, pa.Table.from_pylist(rows, LOG_PROBS))


def _half(node: Node, who: Who) -> StageFolder:
    return StageFolder(node.path / who, node.folder.fingerprint)


def _gaps_file(half: StageFolder, index: int) -> Path:
    return half.path / f"gaps-{index:05d}.json"


def _gaps(node: Node, parts: int) -> Gaps:
    """Of all parts of the posterior's half."""
    files = [_gaps_file(_half(node, "posterior"), index) for index in range(parts)]
    return Gaps.joined(Gaps.from_json(json.loads(file.read_text())) for file in files)


def _joined(node: Node, traces: ScoredTraces, index: int) -> pa.Table:
    schema = pa.schema([LOG_PROBS.field("sums"), LOG_PROBS.field("engine_gap")])
    halves = [_half(node, who).read_part(index, schema).to_pylist() for who in HALVES]
    rows = []
    for row, sampler, policy in zip(_span(node, traces, index), *halves, strict=True):
        trace_length, answer_length = traces.lengths(row)
        rows.append(
            {
                "trace_id": traces.table.column("trace_id")[row].as_py(),
                "trace_length": trace_length,
                "policy_log_prob": policy["sums"][0],
                "sampler_log_prob": sampler["sums"][0],
                "answer_length": answer_length,
                "answer_log_prob": policy["sums"][1],
                "engine_gap": sampler["engine_gap"],
            }
        )
    return pa.Table.from_pylist(rows, SCORES)


def _check_gaps(node: Node, gaps: Gaps) -> None:
    limit = node.settings.scoring.largest_engine_gap
    if limit is None or gaps.mean <= limit:
        return
    raise StageError(
        f"{title(node)}: the log-probs of the engine that sampled the traces are {gaps.mean:.3g} "
        f"nats per token from the trainer's on average (99th percentile {gaps.percentile(99):.3g}),"
        f" more than scoring.largest_engine_gap={limit}: they do not run the same model. Look at "
        "the engine's weights, tokenizer, rotary base and precision, or raise the limit"
    )
