"""Which attention Transformer Engine has no kernel for, with the parts installed here. Pure.

Its own word would be "No dot product attention backend is available", at the first batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from megatron_vr.config.settings import ModelSettings
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.parts import Parts, at_least

# What Megatron sets, and demands of what is set already.
_SWITCHES = {
    "fused": {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
    "flash": {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "0", "NVTE_UNFUSED_ATTN": "0"},
}

# Known to compute wrongly, and passed over by Transformer Engine.
BROKEN_CUDNN = ("9.10.0", "9.10.1")

# The flash-attn that Transformer Engine takes, from a version of it on; of later ones than the last
# that was looked at, only the oldest flash-attn is known.
OLDEST_FLASH_ATTN = ">=2.1.1"
FLASH_ATTN = (
    ("2.8", SpecifierSet(f"{OLDEST_FLASH_ATTN},<=2.8.1")),
    ("2.10", SpecifierSet(f"{OLDEST_FLASH_ATTN},<=2.8.3")),
    ("2.20", SpecifierSet(f"{OLDEST_FLASH_ATTN},<2.8.4")),
    ("2.20.3", SpecifierSet(OLDEST_FLASH_ATTN)),
)


def switch_faults(model: ModelSettings, parts: Parts) -> Iterator[str]:
    """Variables of the environment that contradict `model.attention`: Megatron-Core checks them
    for any layers."""
    wanted = _SWITCHES[model.attention]
    for name, value in parts.attention_switches:
        if value != wanted[name]:
            yield (
                f"{name}={value} in the environment contradicts model.attention: "
                f"{model.attention}, which sets {name}={wanted[name]}; unset it"
            )


def attention_faults(
    model: ModelSettings, architecture: Architecture, parts: Parts
) -> Iterator[str]:
    """Of packs of an `architecture`, on a GPU."""
    assert parts.capability is not None
    if parts.capability < (8, 0):
        yield (
            f"model.spec is te, but a GPU of compute capability {_dotted(parts.capability)} has no "
            "kernels of attention in bfloat16; set model.spec: plain"
        )
        return
    if architecture.head_dim % 8 or architecture.head_dim > 256:
        yield (
            f"the model's head_dim is {architecture.head_dim}, but Transformer Engine's attention "
            "takes multiples of 8 up to 256; set model.spec: plain"
        )
    yield from (
        _flash_faults(parts) if model.attention == "flash" else _fused_faults(architecture, parts)
    )
    if model.fp8 is not None and model.fp8.attention:
        yield from _fp8_faults(parts)


def _fused_faults(architecture: Architecture, parts: Parts) -> Iterator[str]:
    assert parts.capability is not None and parts.transformer_engine is not None
    instead = "set model.attention: flash (flash-attn), or model.spec: plain"
    if parts.capability < (9, 0):
        yield (
            f"model.attention is fused, but on compute capability {_dotted(parts.capability)} "
            f"Transformer Engine has no fused attention for packs, only from 9.0 on; {instead}"
        )
        return
    if parts.capability[0] == 12 and not at_least(parts.transformer_engine, "2.18"):
        yield (
            f"model.attention is fused, but on compute capability {_dotted(parts.capability)} "
            f"Transformer Engine {parts.transformer_engine} computes wrong gradients of packs "
            f"(issue 3333); install 2.18 or later, or {instead}"
        )
        return
    if parts.cudnn is None:
        return
    grouped = architecture.heads != architecture.kv_heads
    oldest = "9.6" if grouped else "9.1"
    if not at_least(parts.cudnn, oldest):
        heads = " with fewer key/value than query heads" if grouped else ""
        yield (
            f"model.attention is fused, but cuDNN is {parts.cudnn}, and packs{heads} take "
            f"{oldest} or later; install a later nvidia-cudnn, or {instead}"
        )
    elif parts.cudnn in BROKEN_CUDNN:
        yield (
            f"model.attention is fused, but Transformer Engine does not use cuDNN {parts.cudnn}, "
            f"whose attention has known faults; install 9.10.2 or later, or {instead}"
        )
    elif 128 < architecture.head_dim <= 256 and not _wide_heads(parts.capability, parts.cudnn):
        yield (
            f"the model's head_dim is {architecture.head_dim}, which cuDNN {parts.cudnn} does not "
            f"train on compute capability {_dotted(parts.capability)}; {instead}"
        )


def _wide_heads(capability: tuple[int, int], cudnn: str) -> bool:
    """Whether heads wider than 128 can be trained. From Blackwell on it is not judged."""
    return capability >= (10, 0) or at_least(cudnn, "9.5")


def _flash_faults(parts: Parts) -> Iterator[str]:
    if parts.flash_attn_3 is not None and parts.capability == (9, 0):
        return
    if parts.flash_attn is None:
        yield (
            "model.attention is flash, but flash-attn is not installed; install it (pip install "
            "flash-attn), or set model.attention: fused"
        )
        return
    assert parts.transformer_engine is not None
    known = [taken for start, taken in FLASH_ATTN if at_least(parts.transformer_engine, start)][-1]
    if Version(parts.flash_attn) not in known:
        yield (
            f"model.attention is flash, but flash-attn is {parts.flash_attn}, and Transformer "
            f"Engine {parts.transformer_engine} takes {known}; install one of those, or set "
            "model.attention: fused"
        )


def _fp8_faults(parts: Parts) -> Iterator[str]:
    """Transformer Engine's pull request 2994: packs in FP8."""
    assert parts.capability is not None and parts.transformer_engine is not None
    if parts.capability < (10, 0):
        yield (
            "model.fp8.attention is true, but no GPU before Blackwell (compute capability 10.0) "
            f"trains packs in it, and this one has {_dotted(parts.capability)}; leave it out"
        )
        return
    early = [
        f"{name} {found}"
        for name, found, oldest in (
            ("Transformer Engine", parts.transformer_engine, "2.20"),
            ("cuDNN", parts.cudnn, "9.23"),
        )
        if found is not None and not at_least(found, oldest)
    ]
    if early:
        yield (
            "model.fp8.attention is true, which takes Transformer Engine 2.20 and cuDNN 9.23 for "
            f"packs, but here is {' and '.join(early)}; leave it out"
        )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
