"""What a training leaves of what it was built from."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.parts import Parts
from megatron_vr.parallel.layout import Layout
from megatron_vr.training import built
from megatron_vr.training.built import BUILT, note_built
from megatron_vr.training.job import TrainJob
from tests.models.reference import tiny_model
from tests.training.jobs import job

# Those of a GPU, which is not here.
ON_GPU = Parts(
    megatron="0.19.2",
    torch="2.11.0",
    transformer_engine="2.20.2",
    cuda="13.0",
    capability=(9, 0),
    apex=frozenset({"amp_C"}),
    attention_switches=(("NVTE_FUSED_ATTN", "1"),),
)


@pytest.fixture
def training(tmp_path: Path) -> TrainJob:
    tiny_model("qwen3", False).config.save_pretrained(tmp_path / "model")
    return job(tmp_path / "model", tmp_path / "run")


def found(training: TrainJob) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((training.folder / BUILT).read_text())
    return content


def test_versions_and_what_was_asked_of_megatron_are_written(training: TrainJob) -> None:
    (line,) = note_built(training)
    assert line == "a test: plain torch layers (auto: no GPU), float32"
    told = found(training)
    assert told["versions"]["megatron"] == metadata.version("megatron-core")
    assert (told["versions"]["torch"], told["versions"]["device"]) == (
        metadata.version("torch"),
        "cpu",
    )
    assert told["resolved"]["optimizer"]["lr"] == 3e-3
    assert told["resolved"]["transformer"]["hidden_size"] == 64
    assert told["earlier"] == []


def test_a_resumption_from_the_same_parts_says_and_keeps_nothing_more(training: TrainJob) -> None:
    first = note_built(training)
    content = found(training)
    assert note_built(training) == first
    assert found(training) == content


def test_a_resumption_from_other_parts_says_which_and_keeps_both(
    training: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_built(training)
    before = found(training)
    upgraded = replace(built.find_parts(), megatron="0.99.0")
    monkeypatch.setattr(built, "find_parts", lambda: upgraded)
    _, line = note_built(training)
    was = metadata.version("megatron-core")
    assert line == f"a test: it was begun with other parts: versions.megatron: {was} → 0.99.0"
    told = found(training)
    assert told["earlier"] == [{key: before[key] for key in ("versions", "resolved")}]
    # Once told, it is as it is.
    assert len(note_built(training)) == 1
    assert found(training) == told


def test_a_resumption_at_another_layout_names_a_few_fields_and_the_file(
    training: TrainJob,
) -> None:
    note_built(training)
    changed = replace(
        training,
        layout=Layout(tensor=2, pipeline=2, context=2, sequence_parallel=True),
        overlap=True,
    )
    _, line = note_built(changed)
    assert "resolved.data_parallel.overlap_grad_reduce: False → True" in line
    assert line.endswith(f"more (see {BUILT})")
    assert "\n" not in line


def test_on_a_gpu_the_line_names_versions_precision_and_kernel(
    training: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(built, "find_parts", lambda: ON_GPU)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a Hopper")
    fp8 = Fp8Settings(recipe="tensorwise")
    model = training.model.model_copy(update={"fp8": fp8, "dtype": "bfloat16"})
    (line,) = note_built(replace(training, model=model))
    assert line == (
        "a test: Transformer Engine 2.20.2 layers (auto: GPUs), bfloat16, FP8 tensorwise hybrid, "
        "cuDNN attention"
    )
    versions = found(training)["versions"]
    assert (versions["device"], versions["capability"]) == ("a Hopper", [9, 0])
    assert versions["attention_switches"] == [["NVTE_FUSED_ATTN", "1"]]
    assert versions["apex"] == ["amp_C"]
