"""Trainings and scores over two processes, in every layout two allow, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.launch import run_ranks
from tests.training.cases import TWO_RANKS, Case
from tests.training.ranks import two_ranks
from tests.training.reference import (
    Reference,
    check_resumption,
    check_scores,
    check_stopped,
    check_training,
    reference_trainings,
)

Measured = tuple[dict[str, Reference], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The references of all cases, and what each rank found."""
    folder = tmp_path_factory.mktemp("two")
    return reference_trainings(TWO_RANKS, folder), run_ranks(two_ranks, 2, str(folder))


@pytest.mark.parametrize("case", TWO_RANKS, ids=lambda case: case.name)
def test_the_layout_does_not_change_what_is_trained(case: Case, measured: Measured) -> None:
    references, ranks = measured
    for found in ranks:
        check_training(case, found["cases"][case.name], references[case.name])


@pytest.mark.parametrize("name", ["dp2", "tp2", "pp2", "cp2"])
def test_a_stopped_training_goes_on_bit_for_bit(name: str, measured: Measured) -> None:
    for found in measured[1]:
        check_resumption(found["resumed"][name])


def test_one_rank_that_is_asked_to_stop_stops_all_after_the_same_step(measured: Measured) -> None:
    for found in measured[1]:
        check_stopped(found["asked"])


def test_a_training_continues_in_another_layout(measured: Measured) -> None:
    _, (found, _) = measured
    whole, _ = found["resumed"]["dp2"]["metrics"]
    assert found["moved"] == pytest.approx([line["loss"] for line in whole], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "scored"),
    [
        ("dp2", [(7, 0), (3, 1)]),
        ("tp2", [(7, 0), (7, 0)]),
        ("pp2", [(7, 0), (7, 0)]),
        ("cp2", [(7, 0), (7, 0)]),
    ],
)
def test_scores_are_the_hugging_face_log_probs_on_every_rank(
    name: str, scored: list[tuple[int, int]], measured: Measured
) -> None:
    for found, (count, seed) in zip(measured[1], scored, strict=True):
        check_scores(found["scores"][name], count, seed)
