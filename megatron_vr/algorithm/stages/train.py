"""sft, posterior, train: make the examples, then train on them with Megatron."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_vr.algorithm.context import Context, model_folder, title
from megatron_vr.algorithm.examples import (
    AcceptedRollout,
    Example,
    WeighedTrace,
    policy_references,
    posterior_references,
    posterior_rollouts,
    theta_examples,
)
from megatron_vr.algorithm.megatron import layout_of, open_megatron
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Bar, Whole
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.config.settings import TrainSettings
from megatron_vr.errors import DataError, StageError
from megatron_vr.models.architecture import read_architecture
from megatron_vr.models.spec import shares_prompts
from megatron_vr.models.support import check_build
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.rollout.probe import Probe, choose_sequences, write_probe
from megatron_vr.rollout.seeds import seed_for
from megatron_vr.traces.columns import usable
from megatron_vr.traces.tables import ANSWERS, EXAMPLES, ROLLOUTS, TRACES, WEIGHTS
from megatron_vr.training.built import note_built
from megatron_vr.training.metrics import StepMetrics
from megatron_vr.training.scoring import Sequenced, score
from megatron_vr.training.trainer import TrainJob, skipped_updates, train

Made = tuple[list[Example], dict[str, Any]]


def run(node: Node, context: Context) -> Finished:
    """Part 0 is the examples table; `checkpoints/`, `metrics.jsonl`, `built.json` and `probe.json`
    lie beside it.

    Raises StageError where the trained model has no number for any sequence of its probe.
    """
    if context.world.is_main and node.folder.missing(1):
        node.folder.write_part(0, make_examples(node, context))
    context.world.barrier()
    examples = node.folder.read_parts(1, EXAMPLES)
    open_megatron(node.settings, context.world)
    job = job_of(node, examples)
    steps = job.plan().steps
    check_build(job.model, read_architecture(job.start_model), job.layout, training=True)
    for line in note_built(job) if context.world.is_main else ():
        context.talk.line(line)
    with context.talk.bar(title(node), steps, "steps", Whole(node.path, steps)) as bar:
        checkpoint = train(
            job,
            _Steps(bar).told,
            lambda: context.interrupt.requested,
            partial(_leave_probe, context, job),
        )
    origins = Counter(examples.column("origin").to_pylist())
    return Finished(
        1,
        {
            "examples": examples.num_rows,
            "too_long": job.plan().dropped,
            "skipped": skipped_updates(checkpoint),
            "origins": dict(origins),
            **_counts(node, examples),
        },
    )


def job_of(node: Node, examples: pa.Table) -> TrainJob:
    """The training of `node` on `examples`."""
    return TrainJob(
        examples=examples,
        start_model=model_folder(node.inputs["start"]),
        folder=node.path,
        settings=train_settings(node),
        model=node.settings.model,
        layout=layout_of(node.settings),
        seed=seed_for(node.settings.run.seed, node.stage),
        name=title(node),
        overlap=node.settings.parallel.overlap,
        tensorboard=node.settings.report.tensorboard,
        wandb_project=node.settings.report.wandb_project,
    )


class _Steps:
    """Tells the `bar` of steps; those of an earlier attempt with the first one."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._last: int | None = None

    def told(self, metrics: StepMetrics) -> None:
        """Of the step that was just made."""
        if self._last is None:
            self._bar.earlier(metrics.step - 1)
        self._last = metrics.step
        self._bar(1)
        self._bar.tokens(round(metrics.tokens_per_second * metrics.seconds))


def train_settings(node: Node) -> TrainSettings:
    """The training settings of this stage."""
    by_stage = {
        "sft": node.settings.policy,
        "posterior": node.settings.posterior.train,
        "train": node.settings.train,
    }
    return by_stage[node.stage]


def _leave_probe(context: Context, job: TrainJob, models: Sequence[Any]) -> None:
    """Write the log-probs of a few examples under the trained `models`, scored by all ranks."""
    table, budget = job.data.table, job.settings.micro_batch_tokens
    positions = read_architecture(job.start_model).max_positions
    examples = [table.tokens[first:last] for first, last in pairwise(table.offsets)]
    sequences = choose_sequences(examples, longest=min(512, positions, budget))
    scored = score(
        models,
        [Sequenced(tokens, ((1, len(tokens)),)) for tokens in sequences],
        budget,
        share_prompts=shares_prompts(job.model.spec, job.layout),
    )
    log_probs = [tuple(found.log_probs.tolist()) for found in scored]
    # A training may have been told to skip what its model has no number for.
    whole = [row for row, found in enumerate(scored) if np.isfinite(found.log_probs).all()]
    if not whole:
        raise StageError(
            f"{job.name}: the trained model has log-probs that are not finite in each of "
            f"{len(scored)} examples; lower optimizer.learning_rate or set not_finite: stop"
        )
    # Every rank of its replica has the scores, so the main process too.
    if context.world.is_main:
        write_probe(
            job.folder,
            Probe(
                tuple(sequences[row] for row in whole),
                (1,) * len(whole),
                tuple(log_probs[row] for row in whole),
            ),
        )


def make_examples(node: Node, context: Context) -> pa.Table:
    """What the training of `node` learns from (schema EXAMPLES). Raises DataError where that is
    nothing."""
    prompts = context.format(node, model_folder(node.inputs["start"]))
    make = {"sft": _sft, "posterior": _posterior, "train": _theta}[node.stage]
    examples = make(node, context, prompts)
    if not examples:
        raise DataError(
            f"{title(node)}: there is nothing to learn from: no reference traces and no correct "
            "trace; give `problems.train` reference traces or another `data` setting"
        )
    return pa.Table.from_pylist([vars(example) for example in examples], EXAMPLES)


def _sft(node: Node, context: Context, prompts: PromptFormat) -> list[Example]:
    return policy_references(context.problems(node), prompts)


def _posterior(node: Node, context: Context, prompts: PromptFormat) -> list[Example]:
    problems = context.problems(node)
    settings = node.settings.posterior
    examples: list[Example] = []
    if settings.data in ("references", "both"):
        examples += posterior_references(problems, prompts, settings.hint)
    if settings.data in ("rollouts", "both"):
        by_id = {problem.id: problem for problem in problems}
        examples += posterior_rollouts(_accepted(node), by_id, prompts, settings.hint)
    return examples


def _accepted(node: Node) -> list[AcceptedRollout]:
    columns = ["trace_id", "problem_id", "trace_ids", "complete", "answer_text", "accepted"]
    rollouts = node.inputs["rollouts"].folder.read(ROLLOUTS, columns)
    faults = usable(rollouts, node.settings.traces.drop_longer_than)
    faultless = pa.array([not fault for fault in faults], pa.bool_())
    rows = rollouts.filter(pc.and_(rollouts.column("accepted"), faultless))
    return [
        AcceptedRollout(row["trace_id"], row["problem_id"], ids, row["answer_text"])
        for row, ids in _with_ids(rows, "trace_ids")
    ]


def _theta(node: Node, context: Context, prompts: PromptFormat) -> list[Example]:
    problems = context.problems(node)
    traces = _chosen(node, context, prompts) if "weights" in node.inputs else []
    attempted = "weights" in node.inputs
    return theta_examples(problems, traces, prompts, node.settings.data, attempted)


def _chosen(node: Node, context: Context, prompts: PromptFormat) -> list[WeighedTrace]:
    """The chosen traces with the answer learned after each: an accepted sample, else y'."""
    of_policy = node.settings.traces.sampler == "policy"
    weights = node.inputs["weights"].folder.read(WEIGHTS, ["trace_id", "weight", "chosen"])
    weight_of = {row["trace_id"]: row["weight"] for row in weights.to_pylist() if row["chosen"]}
    sampled = _sampled_answers(node, weight_of)
    problems = {problem.id: problem for problem in context.problems(node)}
    rows = node.inputs["traces"].folder.read(TRACES, ["trace_id", "problem_id", "trace_ids"])
    chosen = []
    for row, trace_ids in _with_ids(_of_traces(rows, weight_of), "trace_ids"):
        name, problem = row["trace_id"], problems[row["problem_id"]]
        answer = sampled.get(name) or tuple(prompts.reference_answer_ids(problem))
        chosen.append(
            WeighedTrace(
                trace_id=name,
                problem_id=problem.id,
                origin="policy" if of_policy else "posterior",
                trace_ids=trace_ids,
                answer_ids=answer,
                weight=weight_of[name],
            )
        )
    return chosen


def _sampled_answers(node: Node, names: Collection[str]) -> dict[str, tuple[int, ...]]:
    """The first accepted answer of each trace in `names` that has one; empty without sampled
    answers."""
    if node.settings.traces.sampler == "policy":
        source, schema = node.inputs["traces"], ROLLOUTS
    elif "answers" in node.inputs:
        source, schema = node.inputs["answers"], ANSWERS
    else:
        return {}
    first: dict[str, tuple[int, ...]] = {}
    rows = source.folder.read(schema, ["trace_id", "answer_ids", "accepted"])
    accepted = _of_traces(rows.filter(rows.column("accepted")), names)
    for row, answer_ids in _with_ids(accepted, "answer_ids"):
        first.setdefault(row["trace_id"], answer_ids)
    return first


def _of_traces(rows: pa.Table, names: Collection[str]) -> pa.Table:
    wanted = pa.array(list(names), pa.string())
    return rows.filter(pc.is_in(rows.column("trace_id"), value_set=wanted))


def _with_ids(rows: pa.Table, column: str) -> Iterator[tuple[dict[str, Any], tuple[int, ...]]]:
    """Each row without the token ids in `column`, and these.

    Equal token ids are one object: an int of its own for each token takes four times the memory.
    """
    shared: dict[int, int] = {}
    for row, ids in zip(rows.drop_columns([column]).to_pylist(), rows.column(column), strict=True):
        tokens = ids.values.to_numpy().tolist()
        yield row, tuple(map(shared.setdefault, tokens, tokens))


def _counts(node: Node, examples: pa.Table) -> dict[str, int]:
    """In a θ-step with traces: questions by what is learned of them."""
    if "weights" not in node.inputs:
        return {}
    weights = node.inputs["weights"].folder.read(WEIGHTS, ["problem_id", "chosen"]).to_pylist()
    asked = {row["problem_id"] for row in weights}
    with_trace = {row["problem_id"] for row in weights if row["chosen"]}
    learned = set(examples.column("problem_id").to_pylist())
    fallback = node.settings.data.no_correct_trace == "reference"
    return {
        "questions": len(asked),
        "with_correct_trace": len(with_trace),
        "fallen_back": len((asked - with_trace) & learned) if fallback else 0,
        "dropped": len(asked - with_trace - learned),
    }
