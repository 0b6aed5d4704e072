"""What a run asks of Megatron and Transformer Engine, all of it, as data. Pure.

Settings say what a person wants; this is what follows for one model, one layout and one kind of
device. It is shown by `megatron-vr doctor CONFIG`, written beside each training (`built.json`), and
kept for the shipped examples (tests/algorithm/golden).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

import torch

from megatron_vr.config.fp8_settings import ALIGN, Fp8Settings
from megatron_vr.config.settings import ModelSettings, OptimizerSettings
from megatron_vr.config.spec_choice import Spec, resolve_spec
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.configuration import config_fields
from megatron_vr.models.gpt_fields import gpt_fields
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.megatron_settings import ddp_fields, optimizer_fields
from megatron_vr.training.places import PackShape

AttentionKernel = Literal["cuDNN", "flash-attn", "torch"]

# Maximum, sum and target logit of the head, whatever type its products have (`models.log_prob`).
LOG_PROB_REDUCTION = "float32"


@dataclass(frozen=True)
class Base:
    """A model as the settings have it, its shape, its split, and whether it is on GPUs."""

    model: ModelSettings
    architecture: Architecture
    layout: Layout
    on_gpu: bool


@dataclass(frozen=True)
class Resolved:
    """A training, or the scoring of log-probs, as it is built.

    `layers` and `why` these; `attention`: whose kernel; `fused_weight_gradients`: products add
    their weight's gradient to the float32 buffer themselves; `sequence_multiple` and
    `pack_multiple`: what the places of a sequence, and of a whole pack, are padded to a multiple
    of. `gpt`, `transformer`, `data_parallel` and `optimizer` are Megatron's own fields (GPTModel,
    TransformerConfig, DistributedDataParallelConfig, OptimizerConfig); scoring has not the last
    two.
    """

    layers: Spec
    why: str
    dtype: str
    fp8: Mapping[str, Any] | None
    attention: AttentionKernel
    fused_weight_gradients: bool
    recompute: str
    log_prob_chunk: int | str
    log_prob_reduction: str
    micro_batch_tokens: int
    sequence_multiple: int
    pack_multiple: int
    gpt: Mapping[str, Any]
    transformer: Mapping[str, Any]
    data_parallel: Mapping[str, Any] | None = None
    optimizer: Mapping[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it, in the order above and Megatron's fields by name."""
        return {name: as_json(value) for name, value in vars(self).items()}


def resolved_training(
    base: Base, optimizer: OptimizerSettings, *, micro_batch_tokens: int, overlap: bool
) -> Resolved:
    """A training of `base`."""
    model, fp8 = base.model, base.model.fp8
    built = _resolved(base, micro_batch_tokens)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[model.dtype]
    return replace(
        built,
        fused_weight_gradients=built.layers == "te",
        data_parallel=ddp_fields(overlap=overlap, fp8=fp8),
        optimizer=optimizer_fields(optimizer, dtype, overlap=overlap, fp8=fp8),
    )


def resolved_scoring(base: Base, *, micro_batch_tokens: int) -> Resolved:
    """The log-probs that weights are made of, and those that probes are compared with: never in
    FP8, and nothing is recomputed."""
    plain = base.model.model_copy(update={"fp8": None, "recompute": "none"})
    return _resolved(replace(base, model=plain), micro_batch_tokens)


def _resolved(base: Base, micro_batch_tokens: int) -> Resolved:
    model, layout = base.model, base.layout
    layers = resolve_spec(model.spec, base.on_gpu)
    shape = PackShape(
        context=layout.context,
        sequence_parallel=layout.tensor if layout.sequence_parallel else 1,
        align=ALIGN[model.fp8.recipe] if model.fp8 is not None else 1,
    )
    return Resolved(
        layers=layers,
        why=_why(model, base.on_gpu),
        dtype=model.dtype,
        fp8=None if model.fp8 is None else _fp8(model.fp8),
        attention=_kernel(layers, model),
        fused_weight_gradients=False,
        recompute=model.recompute,
        log_prob_chunk=model.log_prob_chunk,
        log_prob_reduction=LOG_PROB_REDUCTION,
        micro_batch_tokens=micro_batch_tokens,
        sequence_multiple=shape.multiple,
        pack_multiple=shape.pack_multiple,
        gpt=gpt_fields(base.architecture, layout),
        transformer=config_fields(
            base.architecture,
            layout,
            spec=layers,
            dtype=model.dtype,
            recompute=model.recompute,
            attention=model.attention,
            fp8=model.fp8,
            on_gpu=base.on_gpu,
        ),
    )


def _why(model: ModelSettings, on_gpu: bool) -> str:
    if model.spec != "auto":
        return "given"
    return "auto: GPUs" if on_gpu else "auto: no GPU"


def _kernel(layers: Spec, model: ModelSettings) -> AttentionKernel:
    if layers == "plain":
        return "torch"
    return "cuDNN" if model.attention == "fused" else "flash-attn"


def _fp8(fp8: Fp8Settings) -> dict[str, Any]:
    """What of the settings the recipe heeds."""
    told = fp8.model_dump() | {"format": fp8.number_format}
    ignored = () if fp8.recipe == "delayed" else ("amax_history", "amax_algorithm")
    return {name: value for name, value in told.items() if name not in ignored}


def as_json(value: Any) -> Any:
    """Types, enumerations and functions by their names; mappings of fields sorted by these.

    Raises TypeError for what has no name.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(name): as_json(value[name]) for name in sorted(value)}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, Enum):
        return value.name
    if callable(value):
        return value.__name__
    raise TypeError(f"{value!r} of type {type(value).__name__} has no form in JSON")


def described(built: Resolved, transformer_engine: str | None = None) -> str:
    """In one line; `transformer_engine` is its version where that is known."""
    if built.layers == "te":
        whose = f"Transformer Engine {transformer_engine or ''}".rstrip()
    else:
        whose = "plain torch"
    words = [f"{whose} layers" + ("" if built.why == "given" else f" ({built.why})")]
    words.append(built.dtype)
    if built.fp8 is not None:
        words.append(f"FP8 {built.fp8['recipe']} {built.fp8['format']}")
        first, last = built.fp8["first_layers_bf16"], built.fp8["last_layers_bf16"]
        if first or last:
            words.append(f"bfloat16 in the first {first} and the last {last} layers")
        if built.fp8["params"]:
            words.append("parameters in FP8")
    if built.layers == "te":
        words.append(f"{built.attention} attention")
    return ", ".join(words)
