"""Which models cannot be built, or are known to go wrong, with the parts installed here.

What settings alone tell is in `config.model_checks`. All is pure but for `check_build`. The table
in docs/fp8.md names where each refusal comes from.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import ModelSettings
from megatron_vr.config.spec_choice import Spec, resolve_spec, without_transformer_engine
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.attention_support import attention_faults, switch_faults
from megatron_vr.models.parts import Parts, at_least, find_parts
from megatron_vr.parallel.layout import Layout

# The oldest that the extra `gpu` installs.
OLDEST_TRANSFORMER_ENGINE = "2.8"

HOPPER = (9, 0)

# Rows and columns of the matrices that FP8 products take: cuBLAS wants 16 bytes.
WIDTH_MULTIPLE = 16
BLOCK = 128


def check_build(
    model: ModelSettings, architecture: Architecture, layout: Layout, *, training: bool
) -> None:
    """Raise SettingsError with one line for each reason why `model` cannot be built in this
    process. A model that only scores has no FP8. To be called before weights are read."""
    asked = model if training else model.model_copy(update={"fp8": None})
    parts = find_parts()
    spec = resolve_spec(model.spec, parts.on_gpu)
    faults = list(build_faults(asked, spec, architecture, layout, parts))
    if faults:
        raise SettingsError("\n".join(faults))


def build_faults(
    model: ModelSettings,
    spec: Spec,
    architecture: Architecture,
    layout: Layout,
    parts: Parts,
) -> Iterator[str]:
    """One line for each conflict with the model's shape, its layout, or the installed `parts`.

    A version that `parts` does not know is taken to fit.
    """
    yield from switch_faults(model, parts)
    if spec != "te":
        return
    if parts.transformer_engine is None:
        yield without_transformer_engine(model.spec)
        return
    if not at_least(parts.transformer_engine, OLDEST_TRANSFORMER_ENGINE):
        yield (
            f"Transformer Engine is {parts.transformer_engine}, but this package is written for "
            f"{OLDEST_TRANSFORMER_ENGINE} and later; install the extra megatron-vr[gpu]"
        )
        return
    if parts.capability is None:
        yield (
            "model.spec is te, but Transformer Engine's layers compute on GPUs alone and there is "
            "none here; set model.spec: plain"
        )
        return
    yield from attention_faults(model, architecture, parts)
    if model.fp8 is not None:
        yield from _device_faults(model.fp8, parts.capability, parts)
        yield from _layer_faults(model.fp8, architecture, layout)
        yield from _width_faults(model.fp8, architecture, layout)
        yield from _version_faults(model.fp8, architecture, layout, parts)


def untested(model: ModelSettings, spec: Spec, parts: Parts) -> Iterator[str]:
    """One line for each thing that may well work, but that nobody has tried with this package."""
    if spec == "te" and parts.capability is not None and parts.capability[0] != HOPPER[0]:
        what = "Transformer Engine's layers" if model.fp8 is None else f"FP8 ({model.fp8.recipe})"
        yield f"{what} on {_named(parts.capability)}: untested, this package is made for Hopper"


def _device_faults(fp8: Fp8Settings, capability: tuple[int, int], parts: Parts) -> Iterator[str]:
    if capability < (8, 9):
        yield (
            f"model.fp8 is {fp8.recipe}, but {_named(capability)} has no FP8 products: that takes "
            "8.9 (Ada) or later; leave model.fp8 out"
        )
        return
    if fp8.recipe != "blockwise":
        return
    if capability < HOPPER:
        yield (
            f"model.fp8 is blockwise, but {_named(capability)} has no products of scaled blocks: "
            "that takes 9.0 (Hopper) or later; use tensorwise"
        )
    # Transformer Engine's issue 2382, open.
    if capability[0] == 12:
        yield (
            f"model.fp8 is blockwise, which does not converge on {_named(capability)} "
            "(Transformer Engine's issue 2382); use tensorwise"
        )
    if parts.cuda is not None and not at_least(parts.cuda, "12.9"):
        yield (
            f"model.fp8 is blockwise, which takes CUDA 12.9 or later, but torch is built for CUDA "
            f"{parts.cuda}; install a torch for a later CUDA, or use tensorwise"
        )


def _layer_faults(fp8: Fp8Settings, architecture: Architecture, layout: Layout) -> Iterator[str]:
    first, last = fp8.first_layers_bf16, fp8.last_layers_bf16
    if first + last >= architecture.layers:
        yield (
            f"model.fp8.first_layers_bf16 + last_layers_bf16 is {first + last}, but the model has "
            f"{architecture.layers} layers: none is left in FP8; lower them, or leave model.fp8 out"
        )
        return
    stage = architecture.layers // layout.pipeline
    for name, count in (("first_layers_bf16", first), ("last_layers_bf16", last)):
        if count > stage:
            yield (
                f"model.fp8.{name} is {count}, but Megatron-Core takes no more than the {stage} "
                f"layers of a pipeline stage; lower it, or parallel.pipeline={layout.pipeline}"
            )


def _width_faults(fp8: Fp8Settings, architecture: Architecture, layout: Layout) -> Iterator[str]:
    for name, width in layer_widths(architecture, layout).items():
        if width % WIDTH_MULTIPLE:
            yield (
                f"model.fp8 is {fp8.recipe}, but a rank's {name} is {width}, and FP8 products take "
                f"multiples of {WIDTH_MULTIPLE}; change parallel.tensor={layout.tensor}, or leave "
                "model.fp8 out"
            )


def layer_widths(architecture: Architecture, layout: Layout) -> dict[str, int]:
    """Rows and columns of the matrices of a layer on one rank, by what they are."""
    a, ranks = architecture, layout.tensor
    ffn = a.ffn_hidden_size if a.experts is None else a.experts.ffn_hidden_size
    return {
        "hidden size": a.hidden_size,
        "width of queries": a.heads * a.head_dim // ranks,
        "width of queries, keys and values": (a.heads + 2 * a.kv_heads) * a.head_dim // ranks,
        "width of the MLP": ffn // ranks,
    }


def _version_faults(
    fp8: Fp8Settings, architecture: Architecture, layout: Layout, parts: Parts
) -> Iterator[str]:
    engine = parts.transformer_engine
    assert engine is not None
    blockwise = fp8.recipe == "blockwise"
    odd = architecture.hidden_size % BLOCK
    if blockwise and layout.sequence_parallel and odd and not at_least(engine, "2.14"):
        yield (
            f"model.fp8 is blockwise with parallel.sequence, which Transformer Engine {engine} "
            f"takes for hidden sizes that are multiples of {BLOCK}, not for "
            f"{architecture.hidden_size}; install 2.14 or later, or use tensorwise"
        )
    # Megatron-LM issue 1863: gathered activations are in a layout that products refuse.
    if (
        blockwise
        and architecture.experts is not None
        and layout.tensor > 1
        and not at_least(engine, "2.12")
    ):
        yield (
            f"model.fp8 is blockwise and the model has experts on parallel.tensor={layout.tensor} "
            f"ranks, which fails with Transformer Engine {engine} (Megatron-LM issue 1863); "
            "install 2.12 or later, or use tensorwise"
        )
    # A gather that is asked for, as before a checkpoint, renews only the rows there.
    if fp8.params and not at_least(parts.megatron, "0.18"):
        yield (
            f"model.fp8.params is true, but Megatron-Core {parts.megatron} leaves old transposed "
            "weights in place after a gather for a checkpoint, so that the next gradients are "
            "wrong; install 0.18 or later, or leave params out"
        )


def _named(capability: tuple[int, int]) -> str:
    return f"a GPU of compute capability {capability[0]}.{capability[1]}"
