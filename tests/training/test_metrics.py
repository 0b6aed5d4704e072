"""Metrics wherever they go: each step once in a resumed training, and no point where none is."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_vr.errors import SettingsError
from megatron_vr.training import metrics
from megatron_vr.training.fp8_stats import Fp8Stats
from megatron_vr.training.metrics import StepMetrics, WeightsAndBiases, check_sinks, open_sinks


def step(number: int, loss: float, mfu: float | None = 0.4) -> StepMetrics:
    return StepMetrics(
        step=number,
        loss=loss,
        grad_norm=1.0,
        learning_rate=1e-3,
        tokens_per_second=100.0,
        effective_sample_size=4.0,
        seconds=0.5,
        tflops=400.0,
        mfu=mfu,
        data_seconds=0.1,
        forward_backward_seconds=0.3,
        optimizer_seconds=0.05,
        checkpoint_seconds=0.0,
        straggler=0.02,
        peak_memory_gib=60.5,
        useful=0.9,
        skipped=1,
        fp8_input_amax=30.0,
        fp8_weight_amax=0.5,
        fp8_gradient_amax=2e-4,
        fp8_range_least=0.01,
        fp8_range_most=0.9,
        fp8_saturated=0.0,
        fp8_broken=0.0,
    )


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


def test_a_line_holds_every_number_and_null_where_none_is_known(tmp_path: Path) -> None:
    steps = [step(1, 1.0), step(2, 2.0, mfu=None), step(3, math.nan)]
    written(tmp_path, 0, steps, tensorboard=False)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        asdict(step(1, 1.0)),
        asdict(step(2, 2.0)) | {"mfu": None},
        asdict(step(3, 3.0)) | {"loss": None},
    ]


def test_without_fp8_its_numbers_are_null(tmp_path: Path) -> None:
    fields = {name: value for name, value in asdict(step(1, 1.0)).items() if "fp8" not in name}
    written(tmp_path, 0, [StepMetrics(**fields)], tensorboard=False)
    line = json.loads((tmp_path / "metrics.jsonl").read_text(encoding="utf-8"))
    fp8 = {name for name in line if name.startswith("fp8_")}
    assert fp8 == {f"fp8_{field.name}" for field in dataclass_fields(Fp8Stats)}
    assert line == fields | dict.fromkeys(fp8)


def test_tensorboard_leaves_out_the_point_that_is_not_known(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = [step(1, 1.0, mfu=None), step(2, 2.0, mfu=0.25)]
    written(tmp_path, 0, steps, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/mfu")] == [(2, 0.25)]
    assert [(e.step, e.value) for e in events.Scalars("train/tflops")] == [(1, 400.0), (2, 400.0)]
    names = {f"train/{name}" for name in asdict(step(1, 1.0)) if name != "step"}
    assert set(events.Tags()["scalars"]) == names


def test_weights_and_biases_gets_only_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    run = SimpleNamespace(
        log=lambda values, step: logged.append((step, values)), finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: run))
    sink = WeightsAndBiases("project", "a test", tmp_path)
    sink.write(step(1, 1.0, mfu=None))
    sink.write(step(2, 2.0))
    everything = {name: value for name, value in asdict(step(2, 2.0)).items() if name != "step"}
    first = {name: value for name, value in everything.items() if name != "mfu"}
    assert logged == [(1, first | {"loss": 1.0}), (2, everything)]


def test_a_sink_whose_package_is_missing_names_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    check_sinks(tensorboard=False, wandb_project=None)
    with pytest.raises(SettingsError, match=r"report\.wandb_project .* wandb"):
        check_sinks(tensorboard=False, wandb_project="project")
    with pytest.raises(SettingsError, match=r"report\.tensorboard"):
        check_sinks(tensorboard=True, wandb_project=None)
