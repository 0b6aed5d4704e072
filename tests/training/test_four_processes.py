"""Products of splits over four processes, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.launch import run_ranks
from tests.training.cases import FOUR_RANKS, Case
from tests.training.ranks import four_ranks
from tests.training.reference import Reference, check_scores, check_training, reference_trainings

Measured = tuple[dict[str, Reference], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """The references of all cases, and what each rank found."""
    folder = tmp_path_factory.mktemp("four")
    return reference_trainings(FOUR_RANKS, folder), run_ranks(four_ranks, 4, str(folder))


@pytest.mark.parametrize("case", FOUR_RANKS, ids=lambda case: case.name)
def test_a_product_of_splits_does_not_change_what_is_trained(
    case: Case, measured: Measured
) -> None:
    references, ranks = measured
    for found in ranks:
        check_training(case, found["cases"][case.name], references[case.name])


def test_scores_are_the_hugging_face_log_probs_on_every_rank(measured: Measured) -> None:
    for found in measured[1]:
        check_scores(found["scores"], count=7, seed=0)


def test_a_training_continues_through_every_layout(measured: Measured) -> None:
    whole, moved = measured[1][0]["moved"]
    assert len(whole) == 8
    assert moved == pytest.approx(whole, rel=1e-5)
