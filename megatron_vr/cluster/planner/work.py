"""How much each stage computes: counts and lengths, from settings and assumptions. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megatron_vr.algorithm.plan import Node
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.sampling import Asked
from megatron_vr.cluster.planner.steps import Lengths
from megatron_vr.config.settings import SamplingSettings, Settings, TrainSettings


@dataclass(frozen=True)
class Counts:
    """Questions to learn from, how many of them have a reference, and held-out questions."""

    train: int
    references: int
    test: int


@dataclass(frozen=True)
class Training:
    """`steps` updates, each of `settings.batch_size` of `examples` sequences."""

    settings: TrainSettings
    examples: int
    steps: int
    lengths: Lengths


@dataclass(frozen=True)
class Scoring:
    """`count` traces under two models."""

    count: int
    lengths: Lengths


def train_settings(node: Node) -> TrainSettings:
    """The settings of the training that `node` is."""
    s = node.settings
    return {"sft": s.policy, "posterior": s.posterior.train, "train": s.train}[node.stage]


def training_of(node: Node, counts: Counts, assumed: PlanAssumptions) -> Training:
    """The training that `node` is."""
    settings = train_settings(node)
    examples = max(1, _examples(node, counts, assumed))
    steps = settings.steps
    if steps is None:
        steps = math.ceil(examples * (settings.epochs or 0) / settings.batch_size)
    prompt, trace, answer = lengths_of(node.settings, assumed)
    targets = trace if node.stage == "posterior" else trace + answer
    return Training(settings, examples, steps, spread_lengths(prompt, targets, targets, assumed))


def scoring_of(node: Node, counts: Counts, assumed: PlanAssumptions) -> Scoring:
    """The log-prob pass that `node` is."""
    prompt, trace, answer = lengths_of(node.settings, assumed)
    lengths = spread_lengths(prompt, trace + answer / 2, trace + answer / 2, assumed)
    return Scoring(counts.train * node.settings.traces.per_question, lengths)


def sampling_of(node: Node, counts: Counts, assumed: PlanAssumptions) -> Asked:
    """The generations of a sampling stage; prompts that several share are read once."""
    s = node.settings
    prompt, trace, answer = lengths_of(s, assumed)
    if node.stage == "answer":
        traces = counts.train * s.traces.per_question
        after = prompt + trace
        return _asked(traces * s.answers.per_trace, traces, after, answer, s.answers, assumed)
    if node.stage == "evaluate":
        count = counts.test * (s.evaluation.samples + 1)
        return _asked(count, counts.test, prompt, trace + answer, s.evaluation, assumed)
    if node.label == "sample-policy":
        count = counts.train * s.rollouts.per_question
        return _asked(count, counts.train, prompt, trace + answer, s.rollouts, assumed)
    count = counts.train * s.traces.per_question
    return _asked(count, counts.train, prompt, trace, s.traces, assumed)


def benchmarks_of(settings: Settings, outputs: int, assumed: PlanAssumptions) -> Asked:
    """The generations of `outputs` answers to benchmarks."""
    prompt, trace, answer = lengths_of(settings, assumed)
    usual = SamplingSettings()
    return _asked(outputs, outputs, prompt, trace + answer, usual, assumed)


def lengths_of(settings: Settings, assumed: PlanAssumptions) -> tuple[float, float, float]:
    """Tokens of a prompt, a trace and an answer, on average.

    No more than half of what may be sampled: tasks with short outputs set a low max_new_tokens.
    """
    s = settings
    most = s.traces.max_new_tokens if s.traces.sampler == "posterior" else s.rollouts.max_new_tokens
    trace = min(assumed.trace_tokens, most / 2)
    answer = min(assumed.answer_tokens, s.answers.max_new_tokens / 2)
    prompt = float(assumed.prompt_tokens)
    if s.model.random is not None:
        prompt = min(prompt, s.model.random.max_positions / 2)
    return prompt, trace, answer


def spread_lengths(prompt: float, more: float, targets: float, assumed: PlanAssumptions) -> Lengths:
    """Of sequences of a prompt and `more` tokens on average, whose number is spread as assumed."""
    tokens = prompt + more
    weighted = tokens + (assumed.spread * more) ** 2 / tokens
    return Lengths(tokens, targets, weighted)


def _examples(node: Node, counts: Counts, assumed: PlanAssumptions) -> int:
    s = node.settings
    if node.stage == "sft":
        return counts.references
    accepted = round(counts.train * s.rollouts.per_question * assumed.correct)
    if node.stage == "posterior":
        found = 0 if s.posterior.data == "rollouts" else counts.references
        return found + (0 if s.posterior.data == "references" else accepted)
    found = counts.references if s.data.references else 0
    if s.traces.sampler == "none":
        return counts.references
    per_question = s.traces.per_question
    if s.traces.sampler == "policy":
        per_question = s.rollouts.per_question
    if s.data.traces == "best":
        solved = 1 - (1 - assumed.correct) ** per_question
        return found + round(counts.train * (solved if s.data.no_correct_trace == "drop" else 1))
    return found + round(counts.train * per_question * assumed.correct)


def _asked(
    count: int,
    prompts: int,
    prompt: float,
    tokens: float,
    sampling: SamplingSettings,
    assumed: PlanAssumptions,
) -> Asked:
    longest = float(sampling.max_new_tokens)
    mean = min(tokens, longest / 2)
    return Asked(count, prompt, mean, longest, assumed.spread, prompts * prompt)
