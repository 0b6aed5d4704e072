"""Plain torch or Transformer Engine: what the setting `model.spec` stands for. Pure."""

from __future__ import annotations

from typing import Literal

SpecName = Literal["auto", "plain", "te"]
Spec = Literal["plain", "te"]


def resolve_spec(name: SpecName, on_gpu: bool) -> Spec:
    """The layers that the setting `name` stands for: with `auto` those of the device."""
    if name == "auto":
        return "te" if on_gpu else "plain"
    return name


def without_transformer_engine(name: SpecName) -> str:
    """What is wrong, and what to do, where `name` stands for te and that is not installed."""
    why = ", which means te on GPUs," if name == "auto" else ""
    return (
        f"model.spec is {name}{why} but Transformer Engine is not installed; install the extra "
        "megatron-vr[gpu], or set model.spec: plain"
    )
