"""Grading many answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_vr.errors import SettingsError
from megatron_vr.grading.judging import judge
from megatron_vr.grading.pool import Job, judge_in_workers
from megatron_vr.grading.verdict import NO_ANSWER, Verdict
from megatron_vr.grading.verifier import load_verifier, place_of


@dataclass(frozen=True)
class GradeItem:
    """One answer, and what its verifier needs.

    `expected` is the reference answer y'. `answer_text` is None where generation gave no answer.
    """

    problem_kind: str
    parameters: Mapping[str, Any]
    expected: str
    answer_text: str | None


def grade(
    items: Sequence[GradeItem],
    workers: int,
    deadline_seconds: float,
    progress: Callable[[int], None] | None = None,
) -> list[Verdict]:
    """The verdict of each item, in order, whatever the number of workers.

    Quick built-in verifiers run in this process; the others in `workers` processes, where an
    answer that takes more than `deadline_seconds` is "timed out" and one that ends its process is
    "verifier crashed". `progress` is called with the number of verdicts since its last call.

    Raises DataError for a kind of problem that has no verifier, or for a problem that its
    verifier refuses; VRError when workers cannot start.
    """
    if workers < 1 or not deadline_seconds > 0:
        raise SettingsError(
            f"grading has workers {workers} and deadline_seconds {deadline_seconds}; "
            "set at least 1 worker and a deadline above 0"
        )
    report = progress or _ignore
    places = {kind: place_of(kind) for kind in dict.fromkeys(item.problem_kind for item in items)}
    for place in places.values():
        load_verifier(place.path)  # fails here, with its cause, rather than in every worker

    verdicts: dict[int, Verdict] = {}
    jobs: dict[int, Job] = {}
    for i, item in enumerate(items):
        place = places[item.problem_kind]
        if item.answer_text is None or not item.answer_text.strip():
            verdicts[i] = Verdict(False, NO_ANSWER, 0.0)
        elif place.in_process:
            verdicts[i] = judge(place.path, item.parameters, item.expected, item.answer_text)
        else:
            jobs[i] = Job(place.path, item.parameters, item.expected, item.answer_text)
    report(len(verdicts))
    if jobs:
        judged = judge_in_workers(list(jobs.values()), workers, deadline_seconds, report)
        verdicts.update(zip(jobs, judged, strict=True))
    return [verdicts[i] for i in range(len(items))]


def _ignore(count: int) -> None:
    """The progress of a caller that does not ask for any."""
