from __future__ import annotations

from typing import Any

import pytest

from megatron_vr.errors import DataError, SettingsError
from megatron_vr.problems.problem import Problem, check_problems, from_table, to_table
from megatron_vr.problems.source_settings import ReasoningGymSource
from megatron_vr.problems.sources import load_problems

reasoning_gym = pytest.importorskip("reasoning_gym")


def load(tasks: list[str], count: int, **settings: Any) -> list[Problem]:
    values = {"kind": "reasoning-gym", "tasks": tasks, "count": count, **settings}
    return load_problems([ReasoningGymSource.model_validate(values)])


def test_problems_are_spread_over_tasks_and_repeat_with_the_seed() -> None:
    tasks = ["leg_counting", "chain_sum", "countdown"]
    problems = load(tasks, 8, seed=4)
    assert [p.source for p in problems] == [f"reasoning-gym:{tasks[i % 3]}" for i in range(8)]
    assert problems == load(tasks, 8, seed=4)
    assert problems != load(tasks, 8, seed=5)


def test_the_stored_problem_is_enough_for_the_tasks_own_scorer() -> None:
    # Countdown has many right answers, so equality with the reference would not do.
    problems = load(["countdown"], 3)
    for problem in from_table(to_table(problems)):
        score = reasoning_gym.get_score_answer_fn(problem.parameters["task"])
        entry = problem.parameters["entry"]
        assert score(problem.answer, entry) == 1.0
        assert score(f"({problem.answer})", entry) == 1.0
        assert score("1 + 1", entry) < 1.0


def test_a_repeated_question_is_drawn_again() -> None:
    problems = load(["coin_flip"], 12, parameters={"min_trials": 3, "max_trials": 4})
    check_problems(problems, "coins")
    with pytest.raises(DataError, match=r"only .* distinct questions"):
        load(["ab"], 10, parameters={"length": 1})


def test_a_difficulty_level_is_the_band() -> None:
    assert {p.band for p in load(["bf"], 2, parameters={"difficulty": 2})} == {"2"}
    assert {p.band for p in load(["leg_counting"], 2)} == {None}


def test_unknown_tasks_and_parameters_name_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"'leg_count'.*leg_counting"):
        load(["leg_count"], 1)
    with pytest.raises(SettingsError, match=r"'min_trial'.*min_trials"):
        load(["coin_flip"], 1, parameters={"min_trial": 2})
    with pytest.raises(SettingsError, match=r"coin_flip.*refuses"):
        load(["coin_flip"], 1, parameters={"min_trials": 9, "max_trials": 2})


def test_tasks_that_give_no_hint_or_cannot_be_judged_later_are_refused() -> None:
    with pytest.raises(DataError, match=r"propositional_logic.*no reference answer"):
        load(["propositional_logic"], 1)
    with pytest.raises(DataError, match=r"arc_agi.*does not accept"):
        load(["arc_agi"], 1)
