"""`megatron-vr quantize` as a user calls it, and who refuses what it makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_vr.errors import CheckpointError
from megatron_vr.rollout.embedded import EmbeddedEngine
from tests.convert.small_release import write_source, write_texts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("quantize") / "hf", "qwen3", False, torch.bfloat16)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_vr", "quantize", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_tells_what_it_made_and_other_engines_refuse_it(
    source: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    done = command(source, tmp_path / "fp8", "--calibration", texts, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["format"], told["matrices"]) == ("fp8", 14)
    assert told["bytes_after"] < told["bytes_before"]
    with pytest.raises(CheckpointError, match=r"quantised \(FP8\).*vLLM or SGLang"):
        EmbeddedEngine.load(tmp_path / "fp8")


def test_bad_arguments_are_one_line_and_no_folder(source: Path, tmp_path: Path) -> None:
    done = command(source, tmp_path / "out", "--format", "int4")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("megatron-vr: format='int4' is unknown; use one of: fp8")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
