"""What `doctor` finds of the GPU path: Transformer Engine, FP8, attention, apex's kernels."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

from megatron_vr.models.parts import APEX_KERNELS, Parts, installed
from megatron_vr.report.finding import Finding

# Whether a recipe can run here, and why not, in Transformer Engine's words.
Answer = tuple[bool, str]

KINDS = {
    "FP8, one scale a tensor": "is_fp8_available",
    "FP8, one scale a block": "is_fp8_block_scaling_available",
}
RECIPES = {
    "FP8, one scale a tensor": "model.fp8: tensorwise or delayed",
    "FP8, one scale a block": "model.fp8: blockwise",
}


def gpu_findings(parts: Parts) -> list[Finding]:
    """Everything on which the GPU path depends, in the order of dependence."""
    return [
        Finding("CUDA", parts.cuda, "GPUs; 12.9 for model.fp8: blockwise", "a torch for CPUs"),
        Finding("compute capability", _capability(parts), "FP8 takes 8.9, Hopper is 9.0", "no GPU"),
        _transformer_engine(parts),
        *_fp8(parts),
        Finding("cuDNN", parts.cudnn, "model.attention: fused, packs from 9.6 on", "flash-attn's"),
        Finding("flash-attn", _flash_attn(parts), "model.attention: flash", "cuDNN's attention"),
        _apex(),
        *_kernels(parts),
    ]


def apex_kind(folder: Path | None) -> str | None:
    """Whose package named `apex` lies in `folder`: NVIDIA's kernels or PyPI's web toolkit."""
    if folder is None:
        return None
    ours = any((folder / name).is_dir() for name in ("multi_tensor_apply", "normalization"))
    return "NVIDIA's" if ours else "another project of that name"


def _capability(parts: Parts) -> str | None:
    return f"{parts.capability[0]}.{parts.capability[1]}" if parts.capability else None


def _transformer_engine(parts: Parts) -> Finding:
    found = parts.transformer_engine
    core = installed("transformer-engine")
    if found is None and core is not None:
        found = f"{core}, without its PyTorch part"
    return Finding(
        "transformer-engine",
        found,
        "fused layers, FP8, context parallelism (model.spec: te)",
        "model.spec: plain, PyTorch layers on any device",
    )


def _fp8(parts: Parts) -> list[Finding]:
    """Whether each kind of FP8 can run here; asked only where there is a GPU, as Transformer
    Engine's answer takes a driver."""
    without = "bfloat16"
    if parts.transformer_engine is None or not parts.on_gpu:
        why = "no GPU" if parts.transformer_engine is not None else "no Transformer Engine"
        return [Finding(kind, None, RECIPES[kind], f"{without} ({why})") for kind in KINDS]
    findings = []
    for kind, question in KINDS.items():
        can, why = ask_transformer_engine(question)
        reason = f"{without} (Transformer Engine: {why})" if why else without
        findings.append(Finding(kind, "can run here" if can else None, RECIPES[kind], reason))
    return findings


def ask_transformer_engine(question: str) -> Answer:
    """What its FP8GlobalStateManager answers; why it cannot be asked, where it does not load."""
    try:
        engine = importlib.import_module("transformer_engine.pytorch")
        # `quantization` took the place of `fp8` after 2.8.
        newer = importlib.util.find_spec("transformer_engine.pytorch.quantization") is not None
        module = importlib.import_module(f"{engine.__name__}.{'quantization' if newer else 'fp8'}")
    except (ImportError, OSError, RuntimeError, AssertionError) as error:
        return False, f"it does not load: {error}"
    ask: Callable[[], Answer] = getattr(module.FP8GlobalStateManager, question)
    return ask()


def _flash_attn(parts: Parts) -> str | None:
    found = [parts.flash_attn] if parts.flash_attn else []
    if parts.flash_attn_3:
        found.append(f"flash-attn-3 {parts.flash_attn_3}")
    return ", ".join(found) or None


def _apex() -> Finding:
    spec = importlib.util.find_spec("apex")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    kind = apex_kind(Path(places[0])) if places else None
    without = "Transformer Engine's or PyTorch's"
    if kind == "another project of that name":
        without += "; the `apex` installed here is PyPI's other project: uninstall it"
    return Finding("apex", kind if kind == "NVIDIA's" else None, "the kernels below", without)


def _kernels(parts: Parts) -> list[Finding]:
    return [
        Finding(f"apex: {name}", _there(name in parts.apex), purpose, INSTEAD[name])
        for name, purpose in APEX_KERNELS.items()
    ]


INSTEAD = {
    "amp_C": "Transformer Engine's, or PyTorch's",
    "fused_weight_gradient_mlp_cuda": "nothing: with te its linear layers do that by themselves, "
    "and plain does not",
    "fused_layer_norm_cuda": "nothing: the models here have RMSNorm",
}


def _there(found: bool) -> str | None:
    return "found" if found else None
