"""Metrics of a resumed training: each step once, wherever they go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_vr.errors import SettingsError
from megatron_vr.training import metrics
from megatron_vr.training.metrics import StepMetrics, check_sinks, open_sinks


def step(number: int, loss: float) -> StepMetrics:
    return StepMetrics(number, loss, 1.0, 1e-3, 100.0, 4.0, 0.5)


def written(folder: Path, done: int, steps: list[StepMetrics], *, tensorboard: bool) -> None:
    sinks = open_sinks(folder, done, "a test", tensorboard, None)
    for found in steps:
        for sink in sinks:
            sink.write(found)
    for sink in sinks:
        sink.close()


def test_lines_past_the_resumed_step_are_dropped_whole_and_cut_ones(tmp_path: Path) -> None:
    written(tmp_path, 0, [step(1, 1.0), step(2, 2.0), step(3, 3.0)], tensorboard=False)
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "los')
    written(tmp_path, 2, [step(3, 30.0), step(4, 40.0)], tensorboard=False)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 2.0, 30.0, 40.0]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written(tmp_path, 0, [step(1, 1.0), step(2, 2.0), step(3, 3.0)], tensorboard=True)
    written(tmp_path, 2, [step(3, 30.0)], tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert points == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_sink_whose_package_is_missing_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    check_sinks(tensorboard=False, wandb_project=None)
    with pytest.raises(SettingsError, match=r"report\.wandb_project .* wandb"):
        check_sinks(tensorboard=False, wandb_project="project")
    with pytest.raises(SettingsError, match=r"report\.tensorboard"):
        check_sinks(tensorboard=True, wandb_project=None)
