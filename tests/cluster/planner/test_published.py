"""The predictions that docs/planner.md shows beside published figures, and its words about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.planner.published import (
    Compared,
    published,
    samplings,
    steps,
    tables,
    trainings,
)

PAGE = Path(__file__).resolve().parents[3] / "docs" / "planner.md"


def errors(points: list[Compared], *, calibrates: bool) -> list[float]:
    return [abs(point.error) for point in points if point.calibrates is calibrates]


@pytest.mark.parametrize("name", ["devices", "rates", "training", "sampling", "steps"])
def test_the_page_shows_what_the_code_predicts(name: str) -> None:
    assert tables()[name] in PAGE.read_text(encoding="utf-8"), (
        "run `python -m tests.cluster.planner.published` and put its tables into docs/planner.md"
    )


def test_every_source_is_named_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, source in published()["sources"].items():
        assert f"`{name}`: {source}" in page


def test_training_is_predicted_as_well_as_the_page_says() -> None:
    points = list(trainings())
    assert max(errors(points, calibrates=True)) < 0.05
    assert max(errors(points, calibrates=False)) < 0.16
    megatron = [point for point in points if point.cells[-1] in ("dgxc", "nemo", "bridge")]
    assert max(errors(megatron, calibrates=False)) < 0.08


def test_sampling_is_predicted_as_well_as_the_page_says() -> None:
    points = list(samplings())
    assert max(errors(points, calibrates=True)) < 0.22
    assert max(errors(points, calibrates=False)) < 0.17


def test_whole_steps_take_one_and_a_half_times_their_parts_and_more() -> None:
    assert all(1.5 < point.published / point.predicted < 1.7 for point in steps())
