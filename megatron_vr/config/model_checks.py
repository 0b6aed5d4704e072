"""Which of a model's settings cannot work together, or are known to go wrong, and why. Pure.

What also takes the model's shape and the installed versions is in `models.support`.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vr.config.fp8_settings import Fp8Settings
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
            f"model.dtype is float32 (the default) and model.spec is {model.spec}, that is "
            "Transformer Engine, whose attention takes no packs in float32; set model.dtype: "
            "bfloat16, or model.spec: plain"
        )
    # With auto the same settings may run on GPUs and without.
    if model.spec == "plain" and model.attention != "fused":
        yield (
            f"model.attention is {model.attention}, but model.spec: plain has an attention of its "
            "own; leave model.attention out, or set model.spec: te"
        )
    if model.fp8 is not None:
        yield from _recipe_faults(model.fp8)
        yield from _params_faults(model.fp8, overlap)
        yield from _attention_faults(model.fp8, model)


def _recipe_faults(fp8: Fp8Settings) -> Iterator[str]:
    if fp8.recipe == "mxfp8":
        yield (
            "model.fp8.recipe is mxfp8, whose products no GPU before Blackwell has, and which is "
            "not made ready here; use blockwise on Hopper"
        )
    if fp8.recipe == "delayed":
        # Each change between FP8 and bfloat16 would end a step of the amax history.
        for name, count in (
            ("first_layers_bf16", fp8.first_layers_bf16),
            ("last_layers_bf16", fp8.last_layers_bf16),
        ):
            if count:
                yield (
                    f"model.fp8.{name} is {count}, but delayed scaling keeps one history for all "
                    "layers and Megatron-Core refuses layers outside of it; use recipe: "
                    "tensorwise or blockwise, or set 0"
                )
        return
    for name, value in (
        ("amax_history", fp8.amax_history),
        ("amax_algorithm", fp8.amax_algorithm),
    ):
        if value != Fp8Settings.model_fields[name].default:
            yield (
                f"model.fp8.{name} is {value}, but {fp8.recipe} scaling keeps no history: only "
                "delayed does; leave it out"
            )


def _params_faults(fp8: Fp8Settings, overlap: bool) -> Iterator[str]:
    # Megatron-LM issue 2272, mended by pull request 4800.
    if fp8.params and not overlap:
        yield (
            "model.fp8.params is true without parallel.overlap: FP8 weights that Megatron-Core "
            "gathered between steps gave NaN losses (issue 2272, with mxfp8, before 0.18), and its "
            f"tests of {fp8.recipe} gather with overlap; set parallel.overlap: true"
        )


def _attention_faults(fp8: Fp8Settings, model: ModelSettings) -> Iterator[str]:
    if not fp8.attention:
        return
    if fp8.recipe == "blockwise":
        yield (
            "model.fp8.attention is true, but blockwise scaling has no attention in Transformer "
            "Engine; leave it out"
        )
    if model.attention == "flash":
        yield (
            "model.fp8.attention is true, but flash-attn trains in bfloat16 only; set "
            "model.attention: fused, or leave model.fp8.attention out"
        )
    # Megatron-LM pull request 7538: what is computed again is so outside of FP8.
    if model.recompute == "selective":
        yield (
            "model.fp8.attention is true with model.recompute: selective, which computes attention "
            "again in bfloat16: gradients of another forward pass; use recompute: none or full"
        )
