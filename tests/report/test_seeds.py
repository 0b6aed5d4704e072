"""The page of several seeds: means, spreads, and differences seed by seed."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest

from megatron_vr.evaluation.spread import spread
from megatron_vr.report.page import write_report
from tests.report.page_reader import PageReader
from tests.report.synthetic import write_run

ROWS = ("start", "sft", "variational")
ACCURACY = {
    1: {"start": 0.40, "sft": 0.50, "variational": 0.70},
    2: {"start": 0.42, "sft": 0.60, "variational": 0.55},
    3: {"start": 0.44, "sft": 0.52, "variational": 0.75},
}


def results(seed: int) -> dict[str, Any]:
    """A results.json; every metric and band of a row is the accuracy shifted by a constant."""

    def row(name: str) -> dict[str, Any]:
        value = ACCURACY[seed][name]

        def numbers(shift: float) -> dict[str, float]:
            return {
                "greedy": value + shift,
                "accuracy": value + shift,
                "pass@8": value + 0.1 + shift,
                "questions": 30,
            }

        return numbers(0.0) | {"bands": {"hard": numbers(-0.1), "easy": numbers(0.1)}}

    return {"seed": seed, "iterations": 1, "rows": {name: row(name) for name in ROWS}}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> PageReader:
    root = tmp_path_factory.mktemp("seeds")
    for seed in ACCURACY:
        write_run(root / f"seed-{seed}", f"run.seed={seed}", stop_at="weigh")
        (root / f"seed-{seed}" / "results.json").write_text(json.dumps(results(seed)))
    combined = spread([results(seed) for seed in ACCURACY])
    (root / "results.json").write_text(json.dumps(combined))
    return PageReader(write_report(root).read_text(encoding="utf-8"))


def of(row: str) -> list[float]:
    return [ACCURACY[seed][row] for seed in ACCURACY]


def short(value: float) -> str:
    return f"{value:.3f}".replace("0.", ".", 1)


def test_the_table_has_means_and_spreads(page: PageReader) -> None:
    cells = page.table("row", "pass@8")
    for row in ROWS:
        wide = f"±{short(stdev(of(row)))}"
        shifts = (0, 0, 0.1, 0.1, 0.1, 0.2, -0.1, -0.1, 0)  # all, easy, hard × three metrics
        expected = [f"{short(fmean(of(row)) + shift)}\n{wide}" for shift in shifts]
        assert cells[row] == expected, f"the row {row}"


def test_differences_are_shown_seed_by_seed(page: PageReader) -> None:
    cells = page.table("row", "above on")["sft"]
    gaps = [100 * (a - b) for a, b in zip(of("variational"), of("sft"), strict=True)]
    mean = f"{fmean(gaps):+.1f}\n±{stdev(gaps):.1f}"
    assert cells == [*(f"{gap:+.1f}".replace("-", "−") for gap in gaps), mean, "2 of 3"]


def test_the_sentence_names_the_best_other_row(page: PageReader) -> None:
    assert (
        "Over 3 seeds, 66.7% of variational's samples are right on average, and 54.0% of sft's, "
        "the best other row: +12.7 points." in page.text
    )


def test_every_seeds_page_is_linked(page: PageReader) -> None:
    linked = [address for address in page.addresses if address.endswith(".html")]
    assert linked == [f"../seed-{seed}/report/index.html" for seed in ACCURACY]


def test_coverage_is_averaged_over_the_seeds_that_have_it(page: PageReader) -> None:
    cells = page.table("sampler", "coverage")
    assert set(cells) == {"", "sampler", "posterior"}
    assert len(cells["posterior"]) == len(cells["sampler"])


def test_one_missing_seed_folder_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(spread([results(1), results(2)])))
    page = PageReader(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No seed has a results.json." in page.text
    assert "2 seeds are too few for a spread to mean much." in page.text
