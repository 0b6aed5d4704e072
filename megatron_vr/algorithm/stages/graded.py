"""Answers by token ids → verdicts, as table columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_vr.algorithm.plan import Node
from megatron_vr.grading.grade import GradeItem, grade
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat


def grade_answers(
    node: Node,
    prompts: PromptFormat,
    problems: Sequence[Problem],
    answers: Sequence[Sequence[int]],
) -> list[dict[str, Any]]:
    """The VERDICT_FIELDS of each answer; `problems` and `answers` go together."""
    texts = [prompts.answer_text(answer) for answer in answers]
    items = [
        GradeItem(problem.kind, problem.parameters, problem.answer, text)
        for problem, text in zip(problems, texts, strict=True)
    ]
    grading = node.settings.grading
    verdicts = grade(items, grading.workers, grading.deadline_seconds)
    return [
        {
            "answer_ids": list(answer),
            "answer_text": text,
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            "seconds": verdict.seconds,
        }
        for answer, text, verdict in zip(answers, texts, verdicts, strict=True)
    ]
