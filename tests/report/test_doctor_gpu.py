"""What `doctor` says of the GPU path, on hosts with and without its parts."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from megatron_vr.models.parts import APEX_KERNELS, Parts
from megatron_vr.report import doctor_gpu
from megatron_vr.report.doctor_gpu import apex_kind, ask_transformer_engine, gpu_findings
from megatron_vr.report.finding import Finding

BARE = Parts(megatron="0.16.1", torch="2.13.0")
ENGINE = replace(BARE, transformer_engine="2.20.2", cuda="13.0", cudnn="9.19.0")
HOPPER = replace(ENGINE, capability=(9, 0))
FP8 = ("FP8, one scale a tensor", "FP8, one scale a block")


def found(parts: Parts) -> dict[str, Finding]:
    return {finding.name: finding for finding in gpu_findings(parts)}


def test_versions_and_the_device_are_shown() -> None:
    with mock.patch.object(doctor_gpu, "ask_transformer_engine", return_value=(True, "")):
        shown = found(replace(HOPPER, flash_attn="2.8.3", flash_attn_3="3.0.0"))
    assert shown["transformer-engine"].found == "2.20.2"
    assert shown["CUDA"].found == "13.0"
    assert shown["cuDNN"].found == "9.19.0"
    assert shown["compute capability"].found == "9.0"
    assert shown["flash-attn"].found == "2.8.3, flash-attn-3 3.0.0"


def test_a_host_without_any_of_it_is_shown_as_that() -> None:
    shown = found(BARE)
    for name in ("CUDA", "compute capability", "cuDNN", "flash-attn", *FP8):
        assert shown[name].found is None, name
        assert shown[name].without_it


def test_kernels_of_apex_are_listed_one_by_one() -> None:
    shown = found(replace(BARE, apex=frozenset({"amp_C"})))
    assert shown["apex: amp_C"].found == "found"
    missing = {f"apex: {name}" for name in APEX_KERNELS} - {"apex: amp_C"}
    assert [shown[name].found for name in missing] == [None] * len(missing)


def test_without_a_gpu_transformer_engine_is_not_asked() -> None:
    with mock.patch.object(doctor_gpu, "ask_transformer_engine", side_effect=RuntimeError):
        shown = found(ENGINE)
    assert [shown[kind].without_it for kind in FP8] == ["bfloat16 (no GPU)"] * 2
    assert [found(BARE)[kind].without_it for kind in FP8] == [
        "bfloat16 (no Transformer Engine)"
    ] * 2


def test_on_a_gpu_each_kind_of_fp8_is_asked_by_itself_and_the_reason_is_shown() -> None:
    answers = {
        "is_fp8_available": (True, ""),
        "is_fp8_block_scaling_available": (False, "requires CUDA >= 12.9"),
    }
    with mock.patch.object(doctor_gpu, "ask_transformer_engine", side_effect=answers.get):
        shown = found(HOPPER)
    assert [shown[kind].found for kind in FP8] == ["can run here", None]
    assert "requires CUDA >= 12.9" in shown[FP8[1]].without_it


# A stand-in with Transformer Engine's names, before and after they moved.
STANDIN = """
class FP8GlobalStateManager:
    @classmethod
    def is_fp8_available(cls):
        return False, "asked in {module}"
"""


@pytest.mark.parametrize("modules", [("fp8",), ("fp8", "quantization")])
def test_transformer_engine_is_asked_where_its_version_answers(
    modules: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "transformer_engine" / "pytorch"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder):
        (package / "__init__.py").touch()
    for module in modules:
        (folder / f"{module}.py").write_text(STANDIN.replace("{module}", module))
    monkeypatch.syspath_prepend(str(tmp_path))
    with _unloaded():
        assert ask_transformer_engine("is_fp8_available") == (False, f"asked in {modules[-1]}")


def test_a_transformer_engine_that_does_not_load_is_told_and_not_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "transformer_engine"
    package.mkdir()
    (package / "__init__.py").write_text("raise OSError('libnccl.so.2: cannot open')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with _unloaded():
        can, why = ask_transformer_engine("is_fp8_available")
    assert not can
    assert "libnccl.so.2" in why


@contextmanager
def _unloaded() -> Iterator[None]:
    """Inside, Transformer Engine is not imported yet; afterwards all modules are as before."""
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
            del sys.modules[name]
        yield


def test_pypis_apex_is_not_taken_for_nvidias(tmp_path: Path) -> None:
    nvidia, other = tmp_path / "nvidia", tmp_path / "other"
    (nvidia / "normalization").mkdir(parents=True)
    (other / "lib").mkdir(parents=True)
    assert apex_kind(nvidia) == "NVIDIA's"
    assert apex_kind(other) == "another project of that name"
    assert apex_kind(None) is None
