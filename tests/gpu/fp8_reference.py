"""What FP8 does to Transformers' model: products of numbers that were rounded to 8 bits before.

One scale for a tensor, made of the tensor's own largest value, everything else in float32. The
products of Transformer Engine may lose no more than this, whatever their scales come from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_PRODUCTS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` as `dtype` has them, scaled to its range."""
    scale = torch.finfo(dtype).max / values.abs().max().clamp_min(1e-30)
    return (values * scale).to(dtype).to(values.dtype) / scale


class _Product(torch.autograd.Function):
    """x [.., in] times weight [out, in] transposed, all three products of training in 8 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradients: torch.dtype) -> Tensor:
        """In e4m3."""
        low = rounded(x, torch.float8_e4m3fn), rounded(weight, torch.float8_e4m3fn)
        ctx.save_for_backward(*low)
        ctx.gradients = gradients
        return low[0] @ low[1].t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """With gradients in `gradients`."""
        x, weight = ctx.saved_tensors
        low = rounded(grad, ctx.gradients)
        return low @ weight, low.flatten(0, -2).t() @ x.flatten(0, -2), None


def in_fp8(model: Any, number_format: str, layers: Iterable[int]) -> Any:
    """Transformers' `model` with the products of these `layers` in FP8; changes it."""
    gradients = {"hybrid": torch.float8_e5m2, "e4m3": torch.float8_e4m3fn}[number_format]
    for number in layers:
        for name, module in model.model.layers[number].named_modules():
            if name.split(".")[-1] in _PRODUCTS:
                _replace(module, gradients)
    return model


def _replace(linear: Any, gradients: torch.dtype) -> None:
    def forward(x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, linear.weight, gradients)
        return product if linear.bias is None else product + linear.bias

    linear.forward = forward
