"""The questions of a run, as far as the report needs them."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.problems.problem import PROBLEM_SCHEMA
from megatron_vr.report.run_folder import RunFolder

COLUMNS = ["id", "question", "answer", "band", "reference_trace"]


@dataclass(frozen=True)
class Question:
    """One question; `answer` is y', the hint."""

    id: str
    text: str
    answer: str
    band: str | None
    has_reference: bool


def read_questions(run: RunFolder, which: str) -> dict[str, Question]:
    """Id → question of the set `which` (train, validation, test); empty before it is read."""
    stage = run.find(f"problems-{which}", MAIN_ARM, 0)
    if stage is None:
        return {}
    return {
        row["id"]: Question(
            id=row["id"],
            text=row["question"],
            answer=row["answer"],
            band=row["band"],
            has_reference=row["reference_trace"] is not None,
        )
        for row in stage.rows(PROBLEM_SCHEMA, COLUMNS)
    }
