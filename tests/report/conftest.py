"""One synthetic run with tiny models and its page, shared by the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.report.page import write_report
from tests.report.page_reader import PageReader
from tests.report.synthetic import Written, write_run
from tests.report.tiny_models import write_model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two small Qwen3 models with the toy tokenizer, by the label of the export that made them."""
    root = tmp_path_factory.mktemp("models")
    labels = ("export-policy", "export-posterior")
    return {label: write_model(root / label, seed) for seed, label in enumerate(labels)}


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path]) -> Written:
    """A finished run of one iteration."""
    return write_run(tmp_path_factory.mktemp("runs") / "full", models=models)


@pytest.fixture(scope="session")
def page(full: Written) -> PageReader:
    """The finished run's page."""
    return PageReader(write_report(full.folder).read_text(encoding="utf-8"))
