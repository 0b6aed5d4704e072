"""Devices that a run is planned for: memory, arithmetic and links. Pure.

Peaks in bfloat16 and float32 are those of `training.flops`; the rest is from NVIDIA's data sheets
(H100, H200, A100, DGX B200). Bandwidths are of one direction. The network is not the device's own:
one 400 Gb/s adapter for each GPU (200 Gb/s for A100), as in NVIDIA's DGX nodes, is assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from megatron_vr.errors import SettingsError
from megatron_vr.problems.nearest import suggestion
from megatron_vr.training.flops import peak_tflops

GIB: Final = 2**30
TERA: Final = 1e12


@dataclass(frozen=True)
class Device:
    """One GPU. `name` as torch gives it, `memory_gib` what CUDA reports in all (2³⁰ bytes).

    `fp8_tflops` is dense, None where there are no such units. `memory_tbs` in 10¹² bytes a second;
    `nvlink_gbs` and `network_gbs` in 10⁹ bytes a second and GPU, one direction. `capability` is
    CUDA's compute capability.
    """

    name: str
    memory_gib: float
    fp8_tflops: float | None
    memory_tbs: float
    nvlink_gbs: float
    network_gbs: float
    capability: tuple[int, int]

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return int(self.memory_gib * GIB)

    def peak(self, dtype: str) -> float:
        """The most operations a second in matrix products of `dtype` (float32, bfloat16, fp8).

        Raises SettingsError where the device has no units for it.
        """
        if dtype == "fp8":
            if self.fp8_tflops is None:
                raise SettingsError(
                    f"model.fp8 is set, but {self.name} computes no FP8; set model.fp8: null, or "
                    "plan for another --device"
                )
            return self.fp8_tflops * TERA
        found = peak_tflops(self.name, getattr(torch, dtype))
        if found is None:
            raise AssertionError(f"training.flops has no peak of {self.name} in {dtype}")
        return found * TERA


DEVICES: Final[Mapping[str, Device]] = {
    "h100": Device("NVIDIA H100 80GB HBM3", 79.1, 1978.9, 3.35, 450.0, 50.0, (9, 0)),
    "h100-pcie": Device("NVIDIA H100 PCIe", 79.1, 1513.0, 2.0, 64.0, 50.0, (9, 0)),
    "h200": Device("NVIDIA H200", 139.8, 1978.9, 4.8, 450.0, 50.0, (9, 0)),
    "b200": Device("NVIDIA B200", 178.3, 4500.0, 7.7, 900.0, 50.0, (10, 0)),
    "a100": Device("NVIDIA A100-SXM4-80GB", 79.1, None, 2.039, 300.0, 25.0, (8, 0)),
    "a100-pcie": Device("NVIDIA A100 80GB PCIe", 79.1, None, 1.935, 32.0, 25.0, (8, 0)),
}


def device_called(name: str) -> Device:
    """The device that --device calls `name`. Raises SettingsError for another name."""
    if name.lower() not in DEVICES:
        raise SettingsError(f"--device {name} is unknown; {suggestion(name, DEVICES)}")
    return DEVICES[name.lower()]
