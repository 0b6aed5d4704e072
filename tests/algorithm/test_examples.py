"""What each training learns from, on the toy format."""

from __future__ import annotations

import pytest

from megatron_vr.algorithm.examples import (
    AcceptedRollout,
    Example,
    WeighedTrace,
    policy_references,
    posterior_references,
    posterior_rollouts,
    theta_examples,
)
from megatron_vr.config.settings import DataSettings
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.toy_tokenizer import make_tokenizer


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return load_format("toy", make_tokenizer(), "posterior")


def problem(name: str, traced: bool) -> Problem:
    return Problem(
        id=name,
        question="S c8 G c18 W c3",
        answer="D D",
        kind="toy-grid",
        parameters={},
        source="toy",
        band="easy",
        reference_trace="c13 c18" if traced else None,
        reference_solution=None,
    )


def weighed(prompts: PromptFormat, name: str, weight: float) -> WeighedTrace:
    return WeighedTrace(
        trace_id=f"{name}/posterior/1/0",
        problem_id=name,
        origin="posterior",
        trace_ids=tuple(prompts.trace_ids("c13 c18")),
        answer_ids=tuple(prompts.answer_ids("D D")),
        weight=weight,
    )


def seen(prompts: PromptFormat, example: Example) -> tuple[str, str]:
    """What is read and what is learned, as text."""
    ids, start = example.token_ids, example.target_start
    return prompts.decode(ids[:start]), prompts.decode(ids[start:])


def test_the_policy_learns_trace_and_answer_after_the_plain_prompt(prompts: PromptFormat) -> None:
    (example,) = policy_references([problem("a", True), problem("b", False)], prompts)
    read, learned = seen(prompts, example)
    assert read == "<bos> S c8 G c18 W c3 <think>"
    assert learned == "c13 c18 </think> D D <eos>"
    assert example.weight == 1.0


def test_the_posterior_learns_the_trace_alone_after_the_hint(prompts: PromptFormat) -> None:
    (example,) = posterior_references([problem("a", True)], prompts, hint=True)
    read, learned = seen(prompts, example)
    assert read == "<bos> S c8 G c18 W c3 <hint> D D </hint> <think>"
    assert learned == "c13 c18 </think>"


def test_without_a_hint_the_posterior_reads_the_policys_prompt(prompts: PromptFormat) -> None:
    (example,) = posterior_references([problem("a", True)], prompts, hint=False)
    assert seen(prompts, example)[0] == "<bos> S c8 G c18 W c3 <think>"


def test_accepted_rollouts_of_a_question_share_its_weight(prompts: PromptFormat) -> None:
    ids = tuple(prompts.trace_ids("c13 c18"))
    rollouts = [
        AcceptedRollout("a/0", "a", ids, "D D"),
        AcceptedRollout("a/1", "a", ids, "R D"),
        AcceptedRollout("b/0", "b", ids, "D D"),
    ]
    by_id = {name: problem(name, False) for name in "ab"}
    examples = posterior_rollouts(rollouts, by_id, prompts, hint=True)
    assert [example.weight for example in examples] == [0.5, 0.5, 1.0]
    assert "<hint> R D </hint>" in seen(prompts, examples[1])[0]


def learned(examples: list[Example]) -> list[tuple[str, str, float]]:
    return [(row.problem_id, row.origin, row.weight) for row in examples]


def test_all_weighted_data_keeps_the_importance_weights(prompts: PromptFormat) -> None:
    settings = DataSettings(traces="all", references=False, no_correct_trace="drop")
    traces = [weighed(prompts, "a", 0.25)]
    found = theta_examples([problem("a", True)], traces, prompts, settings, attempted=True)
    assert learned(found) == [("a", "posterior", 0.25)]


def test_best_plus_reference_data_has_each_question_twice(prompts: PromptFormat) -> None:
    settings = DataSettings(traces="best", references=True, no_correct_trace="reference")
    problems = [problem("a", True), problem("b", True)]
    traces = [weighed(prompts, "a", 0.25)]
    found = theta_examples(problems, traces, prompts, settings, attempted=True)
    assert learned(found) == [
        ("a", "reference", 1.0),
        ("b", "reference", 1.0),
        ("a", "posterior", 1.0),
        ("b", "reference", 1.0),
    ]


def test_a_question_without_trace_and_reference_is_dropped(prompts: PromptFormat) -> None:
    settings = DataSettings(traces="all", references=True, no_correct_trace="reference")
    problems = [problem("a", False), problem("b", False)]
    traces = [weighed(prompts, "a", 1.0)]
    found = theta_examples(problems, traces, prompts, settings, attempted=True)
    assert learned(found) == [("a", "posterior", 1.0)]


def test_plain_sft_learns_each_reference_once(prompts: PromptFormat) -> None:
    found = theta_examples([problem("a", True)], [], prompts, DataSettings(), attempted=False)
    assert learned(found) == [("a", "reference", 1.0)]
