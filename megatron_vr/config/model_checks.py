"""Which of a model's settings cannot work together, or are known to go wrong, and why. Pure.

What also takes the model's shape and the installed versions is in `models.support`.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vr.config.settings import ModelSettings
from megatron_vr.config.spec_choice import Spec


def model_faults(model: ModelSettings, spec: Spec, *, overlap: bool) -> Iterator[str]:
    """One line for each conflict within the settings of a model whose layers are `spec`."""
    if model.fp8 is not None and spec != "te":
        yield (
            f"model.fp8 is {model.fp8.recipe}, which takes Transformer Engine's layers; set "
            "model.spec: te, or leave model.fp8 out"
        )
    if spec == "te" and model.dtype == "float32":
        yield (
            f"model.spec is {model.spec}, that is Transformer Engine, whose attention takes no "
            "packs in float32; set model.dtype: bfloat16, or model.spec: plain"
        )
