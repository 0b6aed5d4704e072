"""`doctor` with and without the settings of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from megatron_vr.cli import app

FP8 = "examples/qwen2.5-32b-fp8.yaml"

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def called(*words: str) -> Result:
    return CliRunner().invoke(app, ["doctor", *words], env={"COLUMNS": "160"})


def test_without_settings_it_looks_at_this_host_alone() -> None:
    found = called("--json")
    assert found.exit_code == 0
    assert {"name", "found", "needed_for", "without_it"} <= set(json.loads(found.stdout)[0])


@without_gpu
def test_without_a_gpu_a_run_is_resolved_for_an_h100_and_that_is_said() -> None:
    found = called(FP8)
    assert found.exit_code == 0, found.output
    assert "resolved for --device h100" in found.stdout
    assert "FP8 blockwise, e4m3" in found.stdout
    assert "sft, posterior, train" in found.stdout
    assert "NOT AS IT IS" not in found.stdout


def test_json_has_every_field_that_megatron_is_given() -> None:
    found = called(FP8, "--device", "h200", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["device"] == "NVIDIA H200"
    assert {finding["name"] for finding in told["host"]} >= {"torch", "megatron-core"}
    (training,) = told["trainings"]
    assert training["stages"] == ["sft", "posterior", "train"]
    assert training["transformer"]["fp8_recipe"] == "blockwise"
    assert training["data_parallel"]["use_distributed_optimizer"] is True
    assert told["scoring"]["fp8"] is None


def test_settings_laid_over_the_file_count() -> None:
    found = called(FP8, "model.fp8=tensorwise", "--device", "h100", "--json")
    assert json.loads(found.stdout)["trainings"][0]["fp8"]["recipe"] == "tensorwise"


def test_what_cannot_be_built_is_told_after_the_table_and_ends_with_2() -> None:
    found = called(FP8, "--device", "a100")
    assert found.exit_code == 2
    assert "layers' products" in found.stdout
    told = found.stdout.split("NOT AS IT IS: ")[1:]
    assert told, found.stdout
    assert "compute capability 8.0" in told[0]
    as_json = called(FP8, "--device", "a100", "--json")
    assert as_json.exit_code == 2
    assert len(json.loads(as_json.stdout)["faults"]) == len(told)


def test_a_cpu_is_a_device_too() -> None:
    found = called("examples/toy.yaml", "--device", "cpu", "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert {one["layers"] for one in [*told["trainings"], told["scoring"]]} == {"plain"}
    # The θ-step learns at another rate than the two before it.
    assert [one["stages"] for one in told["trainings"]] == [["sft", "posterior"], ["train"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "h100"], "give their file too"),
        ([FP8, "--device", "h1000"], "--device h1000 is unknown; did you mean"),
        ([FP8, "model.fpp8=blockwise"], "did you mean"),
        ([FP8, "model.path=someone/unknown"], "its shape is not among those known"),
    ],
)
def test_wrong_use_is_one_message(words: list[str], message: str) -> None:
    found = called(*words)
    assert found.exit_code in (1, 2)
    assert message in found.output
    assert "Traceback" not in found.output


def test_help_teaches() -> None:
    told = called("--help").stdout
    for words in ("--device", "exit code is 2", "model.fp8=blockwise"):
        assert words in told
