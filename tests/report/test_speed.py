"""What the page says of speed, of the split of time, and of skipped updates."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from megatron_vr.report.blocks import Folded, Picture, Table
from megatron_vr.report.run_folder import read_run
from megatron_vr.report.sections.caution import caution
from megatron_vr.report.sections.speed import mean_split, rounded, speed_blocks
from megatron_vr.report.sections.training import training_blocks
from megatron_vr.report.trainings import Training, read_trainings
from tests.report.metrics_lines import CHECKPOINT, Line, old, rewrite
from tests.report.page_reader import PageReader
from tests.report.synthetic import Written, write_run

pytestmark = pytest.mark.xdist_group("report-page")

TRAININGS = {
    "π₀": "iteration-0/sft",
    "variational's q": "iteration-1/posterior",
    "variational-no-hint's q": "comparisons/variational-no-hint/iteration-1/posterior",
    "sft": "comparisons/sft/iteration-1/train",
    "rft": "comparisons/rft/iteration-1/train",
    "rft-per-question": "comparisons/rft-per-question/iteration-1/train",
    "variational-no-hint": "comparisons/variational-no-hint/iteration-1/train",
    "variational": "iteration-1/train",
}


def values(folder: Path, place: str, metric: str) -> list[Any]:
    """A metric of every step, straight from the file."""
    lines = (folder / place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[metric] for line in lines]


def the_training(folder: Path) -> Training:
    """The θ-step of the run itself."""
    run = read_run(folder)
    return next(t for t in read_trainings(run, "train", 1) if t.name == "variational")


def cells(folder: Path) -> list[str]:
    """The numbers of the run's θ-step as the training section shows them."""
    run = read_run(folder)
    (table,) = [block for block in training_blocks(run, 1) if isinstance(block, Table)]
    (line,) = [line for line in table.lines if line.name == "variational"]
    return [cell.text for cell in line.cells]


def drawn(folder: Path) -> list[str]:
    """Names of the pictures beside the speed table."""
    run = read_run(folder)
    blocks = speed_blocks(run, 1, read_trainings(run, "train", 1))
    folded = [block for block in blocks if isinstance(block, Folded)]
    return [b.name for block in folded for b in block.blocks if isinstance(b, Picture)]


@pytest.fixture
def changeable(tmp_path: Path) -> Path:
    """A run of the test's own, whose lines of metrics it may change."""
    return write_run(tmp_path / "run").folder


def test_every_training_has_its_medians(full: Written, page: PageReader) -> None:
    shown = page.table("training", "MFU")
    assert set(shown) == {"training", *TRAININGS}
    for name, place in TRAININGS.items():
        speed, flops, mfu, useful, memory, straggler, skipped = shown[name]
        found = {m: values(full.folder, place, m) for m in ("tokens_per_second", "tflops")}
        assert speed == f"{median(found['tokens_per_second']):,.0f}"
        assert flops == f"{median(found['tflops']):.2g}"
        assert mfu == "–", "the peak of the device is not known"
        assert useful == f"{100 * median(values(full.folder, place, 'useful')):.1f}%"
        assert memory == "1.4", "the largest, not the median"
        assert straggler == f"+{100 * median(values(full.folder, place, 'straggler')):.1f}%"
        assert skipped == "0"


def test_a_known_peak_gives_a_share_of_it(changeable: Path) -> None:
    file = changeable / "iteration-1" / "train" / "metrics.jsonl"
    # Unknown in the steps of before a move to another device.
    rewrite(file, lambda line: line | {"mfu": 0.412 if (line["step"] or 0) > 20 else None})
    assert cells(changeable)[2] == "41.2%"


def test_the_split_of_time_adds_up_to_steps_and_checkpoints(full: Written) -> None:
    split = mean_split(the_training(full.folder))
    assert split is not None
    checkpoint = 3 * CHECKPOINT / 40
    assert split == pytest.approx([0.01, 0.06, 0.02, checkpoint, 0.01])
    assert sum(split) == pytest.approx(0.1 + checkpoint)
    assert drawn(full.folder) == ["time"]


def test_the_pictures_words_say_the_seconds(full: Written) -> None:
    html = (full.folder / "report" / "index.html").read_text(encoding="utf-8")
    told = "variational: data 0.01 s, forward and backward 0.06 s, optimizer 0.02 s, "
    assert told + "checkpoint 0.019 s, the rest 0.01 s" in html


def test_runs_of_older_versions_show_what_they_know(changeable: Path) -> None:
    for place in TRAININGS.values():
        rewrite(changeable / place / "metrics.jsonl", old)
    speed, *others = cells(changeable)
    assert speed == f"{median(values(changeable, 'iteration-1/train', 'tokens_per_second')):,.0f}"
    assert others == ["–"] * 6
    assert drawn(changeable) == []


def test_a_training_resumed_from_an_older_version_counts_the_new_steps(changeable: Path) -> None:
    def resumed(line: Line) -> Line:
        return old(line) if (line["step"] or 0) <= 30 else line | {"useful": 0.5}

    rewrite(changeable / "iteration-1" / "train" / "metrics.jsonl", resumed)
    assert cells(changeable)[3] == "50.0%"
    assert drawn(changeable) == ["time"]


def test_skipped_updates_are_in_the_table_and_in_the_box(
    changeable: Path, page: PageReader
) -> None:
    def skips(line: Line) -> Line:
        lost = {"loss": None, "grad_norm": None} if line["step"] in (7, 9, 20) else {}
        return line | lost | {"skipped": sum((line["step"] or 0) >= at for at in (7, 9, 20))}

    rewrite(changeable / "iteration-1" / "train" / "metrics.jsonl", skips)
    rewrite(changeable / "iteration-0" / "sft" / "metrics.jsonl", lambda x: x | {"skipped": 1})
    assert cells(changeable)[-1] == "3"
    told = caution(read_run(changeable), {}, []).points
    assert (
        "Updates were skipped because loss or gradient was not finite, so these learned from fewer "
        "batches than their settings say: π₀ 1 of 40 steps and variational 3 of 40 steps."
    ) in told
    assert "Updates were skipped" not in page.text, "where none was"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.012"), (3.14159, "3.1"), (9.96, "10"), (41.6, "42"), (12345.6, "12,346")],
)
def test_two_digits_or_all_before_the_point(value: float, text: str) -> None:
    assert rounded(value) == text
