"""What of the GPU path is installed here: versions, kernels, the device. Found at run time."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from packaging.version import Version

# Megatron's uses of apex's compiled kernels. The models built here need none of them.
APEX_KERNELS = {
    "amp_C": "AdamW, gradient norms and clipping in one kernel each, where Transformer Engine's "
    "are missing",
    "fused_weight_gradient_mlp_cuda": "weight gradients of Megatron's own linear layers summed "
    "into float32 by the product itself",
    "fused_layer_norm_cuda": "LayerNorm outside of Transformer Engine",
}

ATTENTION_SWITCHES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


@dataclass(frozen=True)
class Parts:
    """Versions as text, None where a part is missing or its version is not known.

    `cuda` is what torch was built for, `cudnn` what it has loaded, which Transformer Engine
    shares; `capability` is the device's, as (9, 0) of Hopper, None without a GPU; `apex` the
    kernels of NVIDIA's apex by module; `attention_switches` the NVTE_*_ATTN variables that are set.
    """

    megatron: str
    torch: str
    transformer_engine: str | None = None
    cuda: str | None = None
    cudnn: str | None = None
    flash_attn: str | None = None
    flash_attn_3: str | None = None
    capability: tuple[int, int] | None = None
    apex: frozenset[str] = frozenset()
    attention_switches: tuple[tuple[str, str], ...] = ()

    @property
    def on_gpu(self) -> bool:
        """Whether there is a device to compute on."""
        return self.capability is not None


def find_parts() -> Parts:
    """Those of this host and process; imports torch, and nothing that needs a driver."""
    import torch

    return Parts(
        megatron=metadata.version("megatron-core"),
        torch=metadata.version("torch"),
        transformer_engine=transformer_engine_version(),
        cuda=torch.version.cuda,
        cudnn=cudnn_text(torch.backends.cudnn.version()),
        flash_attn=installed("flash-attn"),
        flash_attn_3=installed("flash-attn-3"),
        capability=torch.cuda.get_device_capability() if torch.cuda.is_available() else None,
        apex=apex_kernels(),
        attention_switches=attention_switches(os.environ),
    )


def transformer_engine_version() -> str | None:
    """That of Transformer Engine, None where it or its PyTorch part is missing.

    The part is a distribution of its own from PyPI; built from source, as in NVIDIA's containers,
    it is a library beside the package, or in it.
    """
    part = installed("transformer-engine-torch")
    found = util.find_spec("transformer_engine")
    if part is not None or found is None or found.origin is None:
        return part
    inside = Path(found.origin).parent
    beside = (inside.parent, inside, Path(sysconfig.get_paths()["purelib"]))
    built = any(True for folder in beside for _ in folder.glob("transformer_engine_torch*.so"))
    return installed("transformer-engine") if built else None


def installed(distribution: str) -> str | None:
    """The version of a distribution, without importing it."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def apex_kernels() -> frozenset[str]:
    """The modules of APEX_KERNELS that are installed. They lie beside the package `apex`, so the
    other project of that name has none."""
    return frozenset(name for name in APEX_KERNELS if util.find_spec(name) is not None)


def attention_switches(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The variables of `environment` that allow or forbid kinds of attention."""
    return tuple((name, environment[name]) for name in ATTENTION_SWITCHES if name in environment)


def cudnn_text(number: int | None) -> str | None:
    """cuDNN's version number as text: 91900 is 9.19.0, and before cuDNN 9, 8907 is 8.9.7."""
    if number is None:
        return None
    major = 10_000 if number >= 90_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"


def at_least(version: str, minimum: str) -> bool:
    """Whether `version` is `minimum` or later; a build of it made before its release counts."""
    return Version(Version(version).base_version) >= Version(minimum)
