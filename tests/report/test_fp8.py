"""FP8's curves on the page: there where a training knows them, and silent elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.report.blocks import Folded, Picture, Words
from megatron_vr.report.run_folder import read_run
from megatron_vr.report.sections.fp8 import TITLE, fp8_blocks, fp8_panels
from megatron_vr.report.sections.training import training_blocks
from megatron_vr.report.trainings import Training, read_trainings
from tests.report.metrics_lines import Line, rewrite
from tests.report.synthetic import write_run

pytestmark = pytest.mark.xdist_group("report-page")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of the test's own, whose lines of metrics it may change."""
    return write_run(tmp_path / "run").folder


def tensorwise(line: Line) -> Line:
    """Every tenth step is logged with FP8's numbers; tensorwise scaling knows no range."""
    step = line["step"] or 0.0
    known = {"fp8_input_amax": 4.0 * step, "fp8_weight_amax": 0.5, "fp8_gradient_amax": 1e-3}
    unknown = {"fp8_range_least": None, "fp8_range_most": None, "fp8_saturated": None}
    return line | unknown | known | {"fp8_broken": 0.0} if step % 10 == 0 else line


def delayed(line: Line) -> Line:
    ranges = {"fp8_range_least": 0.1, "fp8_range_most": 1.5, "fp8_saturated": 2.0}
    return tensorwise(line) | ranges | {"fp8_broken": 3.0 if line["step"] == 20 else 0.0}


def trainings(folder: Path) -> list[Training]:
    return read_trainings(read_run(folder), "train", 1)


def test_without_fp8_the_page_says_nothing_of_it(folder: Path) -> None:
    run = read_run(folder)
    assert fp8_blocks(run, 1, trainings(folder)) == []
    titles = [block.title for block in training_blocks(run, 1) if isinstance(block, Folded)]
    assert titles and TITLE not in titles


def test_a_training_in_fp8_has_the_curves_that_it_knows(folder: Path) -> None:
    rewrite(folder / "iteration-1/train/metrics.jsonl", tensorwise)
    panels = fp8_panels(read_run(folder), trainings(folder))
    assert [panel.title for panel in panels] == [
        "Largest input",
        "Largest weight",
        "Largest gradient",
    ]
    (line,) = panels[0].lines
    assert line.name == "variational", "the other rows were not trained in FP8"
    assert (list(line.x), list(line.y)) == ([10, 20, 30, 40], [40, 80, 120, 160])


def test_delayed_scaling_has_its_range_too_and_a_warning_of_broken_tensors(folder: Path) -> None:
    rewrite(folder / "iteration-1/train/metrics.jsonl", delayed)
    run = read_run(folder)
    assert [panel.title for panel in fp8_panels(run, trainings(folder))][3:] == ["Range used"] * 2
    folded = [block for block in training_blocks(run, 1) if isinstance(block, Folded)]
    (fp8,) = [block for block in folded if block.title == TITLE]
    picture, about = fp8.blocks
    assert isinstance(picture, Picture) and picture.png.startswith(b"\x89PNG")
    assert "range used" in picture.alt
    assert isinstance(about, Words) and "delayed scaling" in about.text
    warnings = [
        block
        for block in training_blocks(run, 1)
        if isinstance(block, Words) and block.tone == "warning"
    ]
    assert [warning.text for warning in warnings] == [
        "variational: 3 tensors had a scale or values that are not finite, or were all zero, in "
        "step 20; so had some in 1 of the logged steps."
    ]
