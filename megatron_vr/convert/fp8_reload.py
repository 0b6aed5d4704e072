"""A written FP8 folder, read back into a model that computes what an FP8 engine computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_vr.convert.hf_reader import HFWeights
from megatron_vr.errors import CheckpointError

E4M3_MAX = 448.0

# Of what quantisation itself changes: how far the reload may be from the fake-quantised model.
_MEAN_SHARE, _MAX_SHARE = 0.01, 0.1


def to_fp8(tensor: Tensor, scale: Tensor) -> Tensor:
    """`tensor` / `scale`, clamped to ±448 and rounded to float8_e4m3fn; any shape.

    `scale` is a float32 scalar. The quotient is float32 whatever the dtype of `tensor`: rounding it
    to bfloat16 first would put one value in sixteen on a border between two FP8 values. It is
    taken through the largest value, 448·scale, as modelopt does, so that both round alike.
    """
    factor = E4M3_MAX / (scale * E4M3_MAX)
    return (tensor.float() * factor).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def from_fp8(tensor: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` (float8_e4m3fn) × `scale`, as `dtype`; the product is float32."""
    factor = 1 / (E4M3_MAX / (scale * E4M3_MAX))
    return (tensor.float() * factor).to(dtype)


class Fp8Linear(nn.Module):
    """y = x̂ Ŵᵀ + b with Ŵ = weight · weight_scale and x̂ = FP8(x / input_scale) · input_scale.

    Products of dequantised values in `x`'s dtype; an engine multiplies the FP8 values themselves
    and scales the sum, which is the same but for the rounding of sums. `weight` is float8_e4m3fn
    [out, in], the scales float32 scalars, `bias` [out] or None.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor

    def __init__(self, replaced: nn.Linear) -> None:
        super().__init__()
        empty = torch.empty(replaced.weight.shape, dtype=torch.float8_e4m3fn, device="meta")
        self.register_buffer("weight", empty)
        self.register_buffer("weight_scale", torch.empty((), device="meta"))
        self.register_buffer("input_scale", torch.empty((), device="meta"))
        self.bias = replaced.bias

    def forward(self, x: Tensor) -> Tensor:
        weight = from_fp8(self.weight, self.weight_scale, x.dtype)
        x = from_fp8(to_fp8(x, self.input_scale), self.input_scale, x.dtype)
        return nn.functional.linear(x, weight, self.bias)


def load_fp8(folder: Path, dtype: torch.dtype, device: str) -> Any:
    """The model of an FP8 folder on `device`; what is not FP8 computes in `dtype`.

    Every tensor of the folder is used and every parameter comes from it: CheckpointError
    otherwise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Transformers would look for a quantiser of this name and has none.
    del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    # Its frequencies are computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    weights, state = HFWeights(folder), {}
    for name in sorted(weights.names()):
        tensor = weights.tensor(name)
        if tensor.dtype == torch.float8_e4m3fn:
            layer = name.removesuffix(".weight")
            model.set_submodule(layer, Fp8Linear(model.get_submodule(layer)))
        elif not name.endswith("_scale"):
            tensor = tensor.to(dtype)
        # A copy: what is mapped from a file may lie where kernels sum in another order.
        state[name] = tensor.to(device, copy=True)
        del tensor
        weights.release()
    _fill(model, state, folder)
    return model


def _fill(model: Any, state: dict[str, Tensor], folder: Path) -> None:
    try:
        unknown = model.load_state_dict(state, strict=False, assign=True).unexpected_keys
    except RuntimeError as error:
        raise CheckpointError(f"{folder} does not load as FP8: {error}") from error
    model.tie_weights()
    named = [*model.named_parameters(), *model.named_buffers()]
    missing = [name for name, tensor in named if tensor.is_meta]
    if unknown or missing:
        raise CheckpointError(
            f"{folder} does not hold the tensors of its model: unknown {unknown[:3]}, "
            f"missing {missing[:3]}."
        )


def logits_of(model: Any, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """The logits float32 [length, vocabulary] of every sequence, on the CPU."""
    logits = []
    with torch.inference_mode():
        for sequence in sequences:
            ids = torch.tensor([list(sequence)], device=model.device)
            logits.append(model(input_ids=ids, use_cache=False).logits[0].float().cpu())
    return logits


@dataclass(frozen=True)
class LogitDifference:
    """How two models' logits differ over the same tokens.

    `mean_abs` and `max_abs` are over all positions and the whole vocabulary; `top1_agreement` is
    the share of positions where both have the same most likely token.
    """

    mean_abs: float
    max_abs: float
    top1_agreement: float


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> LogitDifference:
    """Compare logits [length, vocabulary] of the same sequences, in float64 sums."""
    gaps = [(a - b).abs() for a, b in zip(ours, theirs, strict=True)]
    same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(ours, theirs, strict=True)]
    count = sum(gap.numel() for gap in gaps)
    return LogitDifference(
        mean_abs=sum(float(gap.sum(dtype=torch.float64)) for gap in gaps) / count,
        max_abs=float(torch.stack([gap.max() for gap in gaps]).max()),
        top1_agreement=float(torch.cat(same).double().mean()),
    )


def check_reload(
    reloaded: Sequence[Tensor], fake: Sequence[Tensor], unquantised: Sequence[Tensor]
) -> LogitDifference:
    """How the reloaded model differs from the fake-quantised one; CheckpointError if it matters.

    Both take the same products of the same rounded values in the same order, on one device and in
    one dtype, so they should be equal bit for bit. There is no room for "about equal": rounding to
    FP8 is a step function, so one last bit moves an activation over a border, by 6 to 12 %, and
    that moves others in every layer after. Two models that differ in last bits alone end up a
    third to two thirds of quantisation's own effect apart (random models of 12 and 24 layers,
    float32 and bfloat16), and so does one with a wrong scale.

    Allowed are 1 % (mean) and 10 % (largest) of the difference that quantisation itself makes: a
    few isolated borders, and well below what follows from arithmetic that is not the same. A
    millionth of the logits is added, for weights that FP8 holds exactly.
    """
    drift, effect = difference(reloaded, fake), difference(fake, unquantised)
    floor = 1e-6 * max(float(logits.abs().max()) for logits in fake)
    allowed_mean = _MEAN_SHARE * effect.mean_abs + floor
    allowed_max = _MAX_SHARE * effect.max_abs + floor
    # Written so that NaN fails.
    if not (drift.mean_abs <= allowed_mean and drift.max_abs <= allowed_max):
        raise CheckpointError(
            "the written FP8 tensors do not compute what was quantised: logits differ by "
            f"{drift.mean_abs:.3g} on average (allowed: {allowed_mean:.3g}) and by "
            f"{drift.max_abs:.3g} at most (allowed: {allowed_max:.3g}). Nothing was published; "
            "check the disk and quantise again."
        )
    return drift
