"""Answers to reasoning-gym puzzles, judged by each task's own scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from reasoning_gym.factory import get_score_answer_fn

PERFECT = 1 - 1e-9


def judge(parameters: Mapping[str, Any], expected: str, answer_text: str) -> tuple[bool, str]:
    """Whether the scorer gives full marks; partial credit is wrong.

    `parameters` are {"task": name, "entry": the puzzle as generated}.
    """
    score = _scorer(parameters["task"])(answer=answer_text.strip(), entry=parameters["entry"])
    return score >= PERFECT, f"score {score:.3g}"


@cache
def _scorer(task: str) -> Callable[..., float]:
    scorer: Callable[..., float] = get_score_answer_fn(task)
    return scorer
