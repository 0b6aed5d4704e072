from __future__ import annotations

from megatron_vr.algorithm.choose import choose


def whys(mode: str, weights: list[float], groups: list[int], faults: list[str]) -> list[str]:
    return [row.why for row in choose(weights, groups, faults, mode)]  # type: ignore[arg-type]


def test_all_takes_every_trace_of_positive_weight() -> None:
    assert whys("all", [0.7, 0.3, 0.0], [0, 0, 0], ["", "", ""]) == ["", "", "weight zero"]


def test_best_takes_the_heaviest_of_each_question_and_the_first_of_equals() -> None:
    found = whys("best", [0.5, 0.5, 0.2, 0.8], [1, 1, 0, 0], [""] * 4)
    assert found == ["", "not the best", "not the best", ""]


def test_a_question_without_a_correct_trace_has_nothing_chosen() -> None:
    assert whys("best", [0.0, 0.0, 1.0], [0, 0, 1], [""] * 3) == [
        "no correct trace",
        "no correct trace",
        "",
    ]


def test_a_fault_is_the_first_reason() -> None:
    assert whys("all", [0.0, 1.0], [0, 0], ["over-long", ""]) == ["over-long", ""]
