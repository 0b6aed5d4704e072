"""What is found of the GPU path, on a host that has none of it and on one that has."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest
import torch

from megatron_vr.models.parts import (
    APEX_KERNELS,
    apex_kernels,
    at_least,
    attention_switches,
    cudnn_text,
    find_parts,
    transformer_engine_version,
)


def test_versions_are_those_of_the_installed_distributions() -> None:
    parts = find_parts()
    assert parts.megatron == metadata.version("megatron-core")
    assert parts.torch == metadata.version("torch")
    assert parts.cuda == torch.version.cuda


def test_the_device_is_torchs() -> None:
    parts = find_parts()
    assert parts.on_gpu == torch.cuda.is_available()
    if parts.on_gpu:
        assert parts.capability == torch.cuda.get_device_capability()


def test_transformer_engine_is_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, about = tmp_path / "transformer_engine", "transformer_engine_torch-9.8.7.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('no driver')\n")
    (tmp_path / about).mkdir()
    text = "Metadata-Version: 2.1\nName: transformer_engine_torch\nVersion: 9.8.7\n"
    (tmp_path / about / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_parts().transformer_engine == "9.8.7"


@pytest.mark.parametrize("place", [".", "transformer_engine"])
def test_transformer_engine_that_was_built_from_source_counts_with_its_pytorch_library(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, about = tmp_path / "transformer_engine", "transformer_engine-9.8.7.dist-info"
    package.mkdir()
    (package / "__init__.py").touch()
    (tmp_path / about).mkdir()
    text = "Metadata-Version: 2.1\nName: transformer_engine\nVersion: 9.8.7\n"
    (tmp_path / about / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert transformer_engine_version() is None
    (tmp_path / place / "transformer_engine_torch.cpython-312-x86_64-linux-gnu.so").touch()
    assert transformer_engine_version() == "9.8.7"


def test_each_kernel_of_apex_is_found_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "amp_C.py").write_text("raise ImportError('built for another CUDA')\n")
    before = apex_kernels()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert apex_kernels() == before | {"amp_C"}
    assert apex_kernels() <= APEX_KERNELS.keys()


def test_only_switches_of_attention_are_read_from_the_environment() -> None:
    environment = {"NVTE_FUSED_ATTN": "1", "NVTE_FLASH_ATTN": "0", "NVTE_DEBUG": "1", "HOME": "/"}
    assert attention_switches(environment) == (
        ("NVTE_FLASH_ATTN", "0"),
        ("NVTE_FUSED_ATTN", "1"),
    )
    assert attention_switches({}) == ()


def test_cudnns_number_is_read_as_its_header_forms_it() -> None:
    # CUDNN_VERSION: major · 10000 + minor · 100 + patch, with 1000 before cuDNN 9.
    for major, minor, patch in ((9, 0, 0), (9, 6, 0), (9, 10, 1), (9, 19, 0), (10, 2, 3)):
        number = major * 10_000 + minor * 100 + patch
        assert cudnn_text(number) == f"{major}.{minor}.{patch}"
    assert cudnn_text(8 * 1_000 + 9 * 100 + 7) == "8.9.7"
    assert cudnn_text(None) is None


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        ("2.10.0", "2.8", True),
        ("2.8", "2.8.0", True),
        ("2.7.9", "2.8", False),
        ("2.14.0+70f53666", "2.14", True),
        ("2.14.0.dev0", "2.14", True),
        ("12.10", "12.9", True),
        ("12.8", "12.9", False),
    ],
)
def test_versions_compare_by_their_numbers(version: str, minimum: str, enough: bool) -> None:
    assert at_least(version, minimum) == enough
