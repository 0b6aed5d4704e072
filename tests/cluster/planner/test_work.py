"""How much each stage computes, counted by hand from settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vr.algorithm.plan import Node, make_plan
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.work import (
    Counts,
    sampling_of,
    scoring_of,
    spread_lengths,
    training_of,
)
from megatron_vr.config.settings import Settings

COUNTS = Counts(train=100, references=40, test=10)
ASSUMED = PlanAssumptions(prompt_tokens=100, trace_tokens=1000, answer_tokens=200, correct=0.5)


def nodes(tmp_path: Path, **changes: Any) -> dict[str, Node]:
    """The nodes of a small run by their labels."""
    training = {"epochs": 3, "batch_size": 16}
    content = {
        "run": {"folder": tmp_path},
        "model": {"path": "Qwen/Qwen3-4B-Base"},
        "problems": {
            "train": [{"kind": "toy", "count": 100}],
            "test": [{"kind": "toy", "split": "test", "count": 10}],
        },
        "policy": training,
        "posterior": {"train": training},
        "train": training,
        **changes,
    }
    plan = make_plan(Settings.model_validate(content), {})
    return {node.label: node for node in plan.nodes}


def test_fine_tuning_learns_from_the_references(tmp_path: Path) -> None:
    work = training_of(nodes(tmp_path)["sft"], COUNTS, ASSUMED)
    assert (work.examples, work.steps) == (40, 8)  # 3 · 40 / 16, rounded up
    assert (work.lengths.tokens, work.lengths.targets) == (1300, 1200)


def test_the_posterior_learns_traces_without_their_answers(tmp_path: Path) -> None:
    work = training_of(nodes(tmp_path)["posterior"], COUNTS, ASSUMED)
    assert (work.lengths.tokens, work.lengths.targets) == (1100, 1000)


def test_the_posterior_may_learn_accepted_rollouts_too(tmp_path: Path) -> None:
    posterior = {"data": "both", "train": {"epochs": 1}}
    made = nodes(tmp_path, posterior=posterior, rollouts={"per_question": 4})
    assert training_of(made["posterior"], COUNTS, ASSUMED).examples == 40 + 100 * 4 // 2


@pytest.mark.parametrize(
    ("data", "examples"),
    [
        ({"traces": "all"}, 40 + 100 * 8 // 2),
        ({"traces": "all", "references": False}, 100 * 8 // 2),
        ({"traces": "best"}, 40 + 100),
        # Each question but those of which all eight traces are wrong, one in 256.
        ({"traces": "best", "no_correct_trace": "drop", "references": False}, 100),
    ],
)
def test_the_theta_step_learns_what_the_settings_choose(
    tmp_path: Path, data: dict[str, Any], examples: int
) -> None:
    work = training_of(nodes(tmp_path, data=data)["train"], COUNTS, ASSUMED)
    assert work.examples == examples


def test_steps_that_are_given_are_taken(tmp_path: Path) -> None:
    made = nodes(tmp_path, train={"steps": 77})
    assert training_of(made["train"], COUNTS, ASSUMED).steps == 77


def test_lengths_that_spread_have_more_pairs() -> None:
    """Of two traces of 500 and 1500 tokens: standard deviation half their mean."""
    found = spread_lengths(0, 1000, 1000, PlanAssumptions(spread=0.5))
    pairs = (500 * 501 / 2 + 1500 * 1501 / 2) / 2
    assert found.pairs == pytest.approx(pairs)


def test_traces_answers_and_evaluation_are_counted(tmp_path: Path) -> None:
    made = nodes(tmp_path)
    traces = sampling_of(made["sample-posterior"], COUNTS, ASSUMED)
    assert (traces.count, traces.tokens, traces.prompt) == (100 * 8, 1000, 100)
    assert traces.longest == 32_764
    answers = sampling_of(made["answer"], COUNTS, ASSUMED)
    assert (answers.count, answers.tokens, answers.prompt) == (100 * 8 * 8, 200, 1100)
    # The eight answers of a trace share its prompt.
    assert answers.read == 100 * 8 * 1100
    evaluated = sampling_of(made["evaluate"], COUNTS, ASSUMED)
    assert (evaluated.count, evaluated.tokens) == (10 * 9, 1200)


def test_every_trace_is_scored(tmp_path: Path) -> None:
    assert scoring_of(nodes(tmp_path)["score"], COUNTS, ASSUMED).count == 800


def test_outputs_are_not_assumed_longer_than_half_of_what_may_be_sampled(tmp_path: Path) -> None:
    made = nodes(tmp_path, traces={"max_new_tokens": 60, "drop_longer_than": 50})
    assert sampling_of(made["sample-posterior"], COUNTS, ASSUMED).tokens == 30
