"""Stages that are one process's work, where the trainings' layout does not fit the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.algorithm.alone import prepare_alone, run_alone
from megatron_vr.algorithm.run import prepare
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError, StageError
from tests.algorithm.tiny_run import SMALL, TOY, run


def settings_of(folder: Path, *overrides: str) -> Settings:
    own = [f"run.folder={folder}", *SMALL, "comparisons={}", "policy.steps=5", *overrides]
    return load_settings(TOY, own)


def test_a_layout_of_more_ranks_than_the_host_has_stops_no_export(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "parallel.pipeline=2", "parallel.processes=3")
    with pytest.raises(SettingsError, match="does not divide the 3 processes"):
        prepare(settings)
    assert prepare_alone(settings).processes == 1
    with pytest.raises(StageError, match="needs"):
        run_alone("export", settings, 0, "variational")


def test_layers_that_are_not_installed_here_stop_no_export(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "model.spec=te", "model.dtype=bfloat16")
    assert prepare_alone(settings).processes == 1


def test_a_layout_that_fits_no_model_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"model's 2 layers|pipeline"):
        prepare_alone(settings_of(tmp_path, "parallel.pipeline=3"))


@pytest.mark.parametrize(
    ("iteration", "arm", "told"),
    [(1, "none", "--arm 'none' is no row"), (7, "variational", "no stage `export` in iteration 7")],
)
def test_a_row_or_iteration_that_is_none_is_told(
    tmp_path: Path, iteration: int, arm: str, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        run_alone("export", settings_of(tmp_path), iteration, arm)


def test_a_split_model_is_exported_by_its_command_on_one_process(tmp_path: Path) -> None:
    """The training is one rank's; the export is told of three, and two pipeline stages."""
    small = ("comparisons={}", "policy.steps=5")
    trained = run(tmp_path / "run", *small, "--iteration", "0", verb="sft")
    assert trained.returncode == 0, trained.stderr
    split = (*small, "parallel.processes=3", "parallel.pipeline=2", "--iteration", "0")
    exported = run(tmp_path / "run", *split, verb="export")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "run/iteration-0/export-policy/model/config.json").is_file()
