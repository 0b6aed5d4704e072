"""Static FP8 scales by nvidia-modelopt, and the fake-quantised model that computes with them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_vr.convert.calibration import Ids, counted
from megatron_vr.convert.fp8_reload import E4M3_MAX
from megatron_vr.errors import SettingsError

# Engines join these into one matrix with one scale. Where the stored scales differ they quantise
# all but one a second time (vLLM: requantize_with_max_scale).
_JOINED = {"q_proj": "qkv", "k_proj": "qkv", "v_proj": "qkv", "gate_proj": "mlp", "up_proj": "mlp"}
# modelopt takes a largest value up to this for zero.
_ZERO = 2.0**-24


@dataclass(frozen=True)
class Scales:
    """Of one matrix: the float32 values that FP8 weights and inputs are multiplied by."""

    weight: float
    input: float


def require_modelopt() -> None:
    """Raise SettingsError, naming the extra to install, unless nvidia-modelopt imports."""
    try:
        import modelopt.torch.quantization  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"quantising needs nvidia-modelopt, which does not import ({error}): "
            "pip install megatron-vr[quant]"
        ) from error


def calibrate(model: Any, sequences: Sequence[Ids]) -> dict[str, Scales]:
    """Turn `model` into modelopt's fake-quantised FP8 model; the scales of its matrices by name.

    A scale is the largest absolute value / 448, in float32, over the weight or over all inputs.
    """
    import modelopt.torch.quantization as mtq

    with counted("calibration", len(sequences)) as advance:

        def loop(calibrated: Any) -> None:
            for sequence in sequences:
                ids = torch.tensor([list(sequence)], device=calibrated.device)
                calibrated(input_ids=ids, use_cache=False, logits_to_keep=1)
                advance(1)

        # It prints; standard output is the command's.
        with torch.no_grad(), redirect_stdout(sys.stderr):
            mtq.quantize(model, copy.deepcopy(mtq.FP8_DEFAULT_CFG), loop)
    return _settle(model)


def _settle(model: Any) -> dict[str, Scales]:
    """Round each scale once and give it to the model, so that it computes with what is written."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "weight_quantizer") and module.weight_quantizer.is_enabled
    }
    joined: dict[str, list[Tensor]] = {}
    for name, module in layers.items():
        joined.setdefault(_joint(name), []).append(module.weight_quantizer.amax)
    scales = {}
    for name, module in layers.items():
        scales[name] = Scales(
            weight=_settle_one(module.weight_quantizer, joined[_joint(name)]),
            input=_settle_one(module.input_quantizer, [module.input_quantizer.amax]),
        )
    return scales


def _joint(name: str) -> str:
    parent, _, leaf = name.rpartition(".")
    return f"{parent}.{_JOINED.get(leaf, leaf)}"


def _settle_one(quantizer: Any, largest: Sequence[Tensor]) -> float:
    # On the CPU: a GPU may multiply by a rounded 1/448.
    amax = torch.stack([value.detach().float().cpu().reshape(()) for value in largest]).max()
    scale = amax / E4M3_MAX if amax > _ZERO else torch.tensor(1.0)
    shape, device = quantizer.amax.shape, quantizer.amax.device
    quantizer.reset_amax()  # It has the model's dtype otherwise.
    quantizer.amax = (scale * E4M3_MAX).reshape(shape).to(device)
    return float(scale)


def description(model: Any) -> dict[str, Any]:
    """What is quantised in a calibrated model, as modelopt's `hf_quant_config.json` has it."""
    from modelopt.torch.export.quant_utils import get_quant_config  # type: ignore[import-untyped]

    return dict(get_quant_config(model))


def engine_description(described: dict[str, Any]) -> dict[str, Any]:
    """The same as `quantization_config` of `config.json` has it, where engines look first."""
    from modelopt.torch.export.convert_hf_config import (  # type: ignore[import-untyped]
        convert_hf_quant_config_format,
    )

    return dict(convert_hf_quant_config_format(described))
