"""The table and the picture of a comparison of FP8 with bfloat16."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from megatron_vr.report.fp8_check import draw_check, print_check, shown_steps
from megatron_vr.training.checked import Checked
from megatron_vr.training.first_steps import FirstSteps


def half(name: str, losses: list[float], speed: float, *lost: int) -> FirstSteps:
    return FirstSteps(name, tuple(losses), lost, speed, 3.25, {"fp8_input_amax": 123.456})


def checked(tried: list[float], *lost: int) -> Checked:
    reference = half("bfloat16", [2.0] * len(tried), 1000.0)
    return Checked(reference, half("FP8 delayed", tried, 1500.0, *lost), 0.005)


def printed(found: Checked) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_check(found, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


def line(text: str, title: str) -> list[str]:
    (found,) = [row for row in text.splitlines() if row.strip().startswith(title)]
    return found.strip().removeprefix(title).split()


def test_the_halves_stand_side_by_side() -> None:
    shown = printed(checked([2.0] * 20 + [2.02] * 10))
    assert line(shown, "loss, step 30") == ["2.0000", "2.0200", "+1.00%"]
    assert line(shown, "mean loss, last 10") == ["2.0000", "2.0200", "+1.00%"]
    assert line(shown, "tokens per second") == ["1,000", "1,500", "1.50", "×"]
    assert line(shown, "peak memory (GiB)") == ["3.2", "3.2"]
    assert line(shown, "largest input") == ["–", "123"]


def test_what_is_not_finite_is_shown_as_unknown() -> None:
    shown = printed(checked([2.0] * 9 + [math.nan], 10))
    assert line(shown, "loss, step 10") == ["2.0000", "–", "–"]
    assert line(shown, "steps not finite") == ["0", "1"]


@pytest.mark.parametrize(
    ("steps", "shown"),
    [(1, [1]), (3, [1, 2, 3]), (300, [1, 30, 60, 90, 120, 150, 180, 210, 240, 270, 300])],
)
def test_some_steps_are_shown_and_always_the_first_and_the_last(
    steps: int, shown: list[int]
) -> None:
    assert shown_steps(steps) == shown


@pytest.mark.parametrize("tried", [[2.0] * 40, [math.nan] * 12, [1.0]])
def test_every_curve_is_drawn(tried: list[float]) -> None:
    assert draw_check(checked(tried)).startswith(b"\x89PNG")


def test_what_is_written_is_json_and_reads_the_same() -> None:
    found = checked([2.0, math.inf] + [2.0] * 10, 2)
    text = json.dumps(found.as_json(), allow_nan=False)
    again = Checked.from_json(json.loads(text))
    assert again.fault == found.fault is not None
    assert math.isnan(again.tried.losses[1]) and again.tried.not_finite == (2,)
    assert again.reference == found.reference


@pytest.mark.parametrize(
    ("tried", "lost", "told"),
    [
        ([2.009] * 10, (), None),
        ([2.02] * 10, (), "FP8 delayed is +1.00% off bfloat16, and 0.50% is allowed"),
        ([1.98] * 10, (), "FP8 delayed is -1.00% off bfloat16"),
        # The loss may be finite where the gradient is not.
        ([2.0] * 10, (4, 5), "loss or gradient is not finite at step 4 of 10 (2 such steps)"),
    ],
)
def test_a_fault_is_one_sentence(tried: list[float], lost: tuple[int, ...], told: str) -> None:
    fault = checked(tried, *lost).fault
    if told is None:
        assert fault is None
    else:
        assert fault is not None and told in fault and "\n" not in fault


def test_a_reference_that_is_lost_is_not_held_against_fp8() -> None:
    reference = half("bfloat16", [2.0] * 9 + [math.nan], 1.0, 10)
    tried = half("FP8 delayed", [2.0] * 9 + [math.nan], 1.0, 10)
    fault = Checked(reference, tried, 0.005).fault
    assert fault is not None and fault.startswith("bfloat16: the mean loss")
    early = Checked(
        half("bfloat16", [math.nan] + [2.0] * 11, 1.0, 1),
        half("FP8", [math.nan] + [2.0] * 11, 1.0, 1),
        0.005,
    )
    assert early.fault is None
