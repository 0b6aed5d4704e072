"""What is found on this machine, what is refused on it, and that it takes what runs ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.algorithm.resolved_run import Target, resolve_run
from megatron_vr.config.load import load_settings
from megatron_vr.models.parts import find_parts
from tests.algorithm.golden.resolved import EXAMPLES, H100, ROOT, kept
from tests.gpu.conftest import Measured
from tests.gpu.place import HOPPER

pytestmark = pytest.mark.needs_gpu("it is about a machine with one")


def doctor(*args: str) -> subprocess.CompletedProcess[str]:
    """What the command tells."""
    command = [sys.executable, "-m", "megatron_vr", "doctor", *args]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=110, check=False
    )


def test_what_is_installed_is_found(measured: Measured) -> None:
    import torch
    import transformer_engine
    import transformer_engine_torch  # type: ignore[import-not-found]

    parts = find_parts()
    measured(parts={name: str(value) for name, value in vars(parts).items()})
    assert parts.capability == torch.cuda.get_device_capability() >= HOPPER
    assert parts.transformer_engine == transformer_engine.__version__.split("+")[0]
    version = transformer_engine_torch.get_cudnn_version()
    found = tuple(map(int, str(parts.cudnn).split(".")))
    assert found[0] * 10_000 + found[1] * 100 + found[2] == version, "one cuDNN for both"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_shipped_run_is_built_here_as_was_written_down_without_a_gpu(
    example: Path, measured: Measured
) -> None:
    from megatron.core.transformer.transformer_config import TransformerConfig

    run = resolve_run(load_settings(example), Target(H100.name, find_parts()))
    told = json.loads(json.dumps(run.as_json()))
    measured(faults=list(run.faults), notes=list(run.notes))
    assert not run.faults
    assert told["trainings"] == kept(example)["trainings"]
    assert told["scoring"] == kept(example)["scoring"]
    for resolved in (*run.trainings.values(), run.scoring):
        config = TransformerConfig(**resolved.transformer)
        assert config.fp8_recipe == (resolved.fp8 or {"recipe": config.fp8_recipe})["recipe"]


def test_mxfp8_is_refused() -> None:
    settings = load_settings(EXAMPLES[0], ["model.fp8=mxfp8"])
    faults = resolve_run(settings, Target("this machine", find_parts())).faults
    assert any("mxfp8" in fault and "Blackwell" in fault for fault in faults), faults


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])
def test_attention_in_fp8_is_refused_since_packs_cannot_have_it(recipe: str) -> None:
    override = f"model.fp8={{recipe: {recipe}, attention: true}}"
    settings = load_settings(EXAMPLES[0], [override])
    faults = resolve_run(settings, Target("this machine", find_parts())).faults
    assert any("model.fp8.attention" in fault for fault in faults), faults


def test_the_doctor_names_the_device_and_transformer_engine(measured: Measured) -> None:
    import torch
    import transformer_engine

    told = doctor("--json")
    assert told.returncode == 0, told.stderr
    findings: dict[str, Any] = {part["name"]: part["found"] for part in json.loads(told.stdout)}
    measured(findings=findings)
    assert torch.cuda.get_device_name() in findings["GPUs"]
    assert transformer_engine.__version__.split("+")[0] in findings["transformer-engine"]


def test_the_doctor_finds_no_fault_in_a_shipped_run() -> None:
    told = doctor(str(ROOT / "examples" / "qwen3-8b.yaml"), "model.fp8=blockwise", "--json")
    assert told.returncode == 0, told.stdout + told.stderr
    assert json.loads(told.stdout[told.stdout.index("{") :])["faults"] == []
