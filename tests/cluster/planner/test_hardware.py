"""Devices: NVIDIA's figures, and what is said of others."""

from __future__ import annotations

import pytest
import torch

from megatron_vr.cluster.planner.hardware import DEVICES, device_called
from megatron_vr.errors import SettingsError
from megatron_vr.training.flops import peak_tflops


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_the_peaks_that_training_reports_against(name: str) -> None:
    device = DEVICES[name]
    for dtype in ("bfloat16", "float32"):
        assert device.peak(dtype) / 1e12 == peak_tflops(device.name, getattr(torch, dtype))


def test_fp8_is_twice_as_fast_as_bfloat16_where_there_is_any() -> None:
    for device in DEVICES.values():
        if device.fp8_tflops is not None:
            assert device.peak("fp8") / device.peak("bfloat16") == pytest.approx(2, rel=0.01)


def test_fp8_on_an_a100_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"computes no FP8; set model\.fp8: null"):
        DEVICES["a100"].peak("fp8")


def test_an_unknown_device_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(SettingsError, match="--device h1000 is unknown; did you mean h100"):
        device_called("h1000")


def test_case_does_not_matter() -> None:
    assert device_called("H200") is DEVICES["h200"]
