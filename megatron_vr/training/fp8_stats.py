"""What FP8 makes of a step's tensors: their largest values, and how they fit into the format.

Measured where each linear layer of Transformer Engine is called, so that values and scales are
those the product used. Of delayed scaling the layer's quantizers tell the scale; for the other
recipes, whose scales follow from the tensor itself, newer versions keep neither scale nor amax.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.errors import StageError

INPUT, WEIGHT, GRADIENT, NORMED = range(4)
E4M3_LARGEST, E5M2_LARGEST = 448.0, 57344.0
UNKNOWN: Final = -1.0  # of a scale: those that are known are positive
# The product of an amax and the scale made of it is the format's largest number up to rounding.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Fp8Stats:
    """Over the tensors that a step's matrix products took, on all ranks; those of experts, whose
    products are grouped, are not looked at.

    `input_amax`, `weight_amax`, `gradient_amax`: the largest absolute values. `range_least`,
    `range_most`: amax · scale over the format's largest number, of the tensors that use the least
    and the most of it; above 1 values were cut off. `saturated`: tensors where they were. `broken`:
    tensors whose amax or scale is not finite, and inputs and weights that are all zero. Counts are
    of one copy of the model, the mean over copies. None where nothing tells.
    """

    input_amax: float | None
    weight_amax: float | None
    gradient_amax: float | None
    range_least: float | None
    range_most: float | None
    saturated: float | None
    broken: float | None


def summarise(kinds: Tensor, amax: Tensor, scale: Tensor, used: Tensor) -> Tensor:
    """[9] float64 on the tensors' device, for `over_ranks`, without waiting for the device.

    Of each of n tensors: `kinds` [n] INPUT, WEIGHT, GRADIENT or NORMED, an input behind a norm;
    `amax`, `scale` (UNKNOWN where it is) and `used`, which is amax · scale over the format's
    largest number, [n] float32.
    """
    amax = torch.where(amax.isfinite(), amax, torch.inf)
    known = scale != UNKNOWN
    broken = amax.isinf() | (known & ~(scale.isfinite() & (scale > 0)))
    sound = known & ~broken & (amax > 0)
    # A rank may have no example of a batch, and so no gradient.
    broken = broken | ((amax == 0) & (kinds != GRADIENT))
    numbers = [
        torch.where((kinds == INPUT) | (kinds == NORMED), amax, -torch.inf).amax(),
        *(torch.where(kinds == kind, amax, -torch.inf).amax() for kind in (WEIGHT, GRADIENT)),
        torch.where(sound, used, torch.inf).amin(),
        torch.where(sound, used, -torch.inf).amax(),
        (sound & (used > 1 + ROUNDING)).sum(),
        broken.sum(),
        known.sum(),
        torch.ones_like(amax).sum(),
    ]
    return torch.stack([number.double() for number in numbers])


def over_ranks(table: Sequence[Sequence[float]], copies: int) -> Fp8Stats:
    """The statistics of ranks whose `summarise` are the rows of `table`, `copies` of the model."""
    inputs, weights, gradients, least, most, *counts = zip(*table, strict=True)
    saturated, broken, known, tensors = (sum(count) for count in counts)
    return Fp8Stats(
        input_amax=_there(max(inputs)),
        weight_amax=_there(max(weights)),
        gradient_amax=_there(max(gradients)),
        range_least=_there(min(least)) if known else None,
        range_most=_there(max(most)) if known else None,
        saturated=saturated / copies if known else None,
        broken=broken / copies if tensors else None,
    )


def _there(value: float) -> float | None:
    """None for the largest, or smallest, of no tensor; an amax that is not finite stays."""
    return None if value == -torch.inf else value


class Fp8Watch:
    """Measures this rank's stages `models`, built with `fp8`, in the steps that are asked for.

    Raises StageError where the models have no layers that tell of FP8.
    """

    def __init__(self, models: Sequence[torch.nn.Module], fp8: Fp8Settings) -> None:
        self._layers = [layer for model in models for layer in _layers(model)]
        if not self._layers:
            raise StageError(
                f"model.fp8 is {fp8.recipe}, but no layer of the model has the quantizers of "
                "Transformer Engine 2; install the extra megatron-vr[gpu] and set model.spec: te, "
                "or leave model.fp8 out"
            )
        self._delayed = fp8.recipe == "delayed"
        backward = E4M3_LARGEST if fp8.number_format == "e4m3" else E5M2_LARGEST
        forward = dict.fromkeys((INPUT, WEIGHT, NORMED), E4M3_LARGEST)
        self._largest = {**forward, GRADIENT: backward}
        # [amax, scale, used] of each layer's tensors, the largest over the micro-batches.
        self._seen: dict[tuple[int, int, str], Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Measure the forward and backward passes inside."""
        self._seen.clear()
        handles = [
            layer.register_forward_hook(partial(self._forward, number))
            for number, layer in enumerate(self._layers)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def stats(self) -> Fp8Stats:
        """Of what was measured last; every rank must call it, and gets the same."""
        size, rank = dist.get_world_size(), dist.get_rank()
        mine = self._summary()
        table = torch.zeros(size, len(mine), dtype=mine.dtype, device=mine.device)
        table[rank] = mine
        if size > 1:
            dist.all_reduce(table)
        self._seen.clear()
        copies = parallel_state.get_data_parallel_world_size(with_context_parallel=True)
        return over_ranks(table.tolist(), copies)

    def _summary(self) -> Tensor:
        device = next(self._layers[0].parameters()).device
        rows = [torch.full((3,), UNKNOWN, device=device), *self._seen.values()]
        amax, scale, used = torch.stack(rows)[1:].unbind(dim=1)
        if not len(amax):  # a stage whose layers are all in bfloat16
            none = [-torch.inf] * 3 + [torch.inf, -torch.inf] + [0.0] * 4
            return torch.tensor(none, dtype=torch.float64, device=device)
        kinds = torch.tensor([kind for _, kind, _ in self._seen], device=device)
        return summarise(kinds, amax, scale, used)

    @torch.no_grad()
    def _forward(self, number: int, layer: Any, args: tuple[Any, ...], output: Any) -> None:
        quantizers = layer.quantizers["scaling_fwd"]
        if not len(quantizers):  # a layer that stays in bfloat16
            return
        if not hasattr(layer, "layer_norm_weight"):
            self._note((number, INPUT, ""), largest(args[0]), quantizers[0])
        else:
            # A layer with a norm of its own multiplies what that gives.
            self._note((number, NORMED, ""), self._normed(layer, args[0]), quantizers[0])
        for name in layer.weight_names:
            # They are quantised once a step, so in its first micro-batch.
            if (number, WEIGHT, name) not in self._seen:
                weight = largest(getattr(layer, name))
                self._note((number, WEIGHT, name), weight, quantizers[1])
        result = output[0] if isinstance(output, tuple) else output
        if result.requires_grad:
            result.register_hook(partial(self._backward, number, layer))

    def _normed(self, layer: Any, hidden: Tensor) -> Tensor:
        if not self._delayed:
            return largest_normed(hidden, layer.layer_norm_weight, layer.eps)
        # The quantizer has seen it. The next micro-batch's is written in the same place.
        amax: Tensor = layer.quantizers["scaling_fwd"][0].amax
        return amax.detach().float().reshape(()).clone()

    @torch.no_grad()
    def _backward(self, number: int, layer: Any, gradient: Tensor) -> None:
        """Of the gradient that `layer` is about to quantise."""
        quantizer = layer.quantizers["scaling_bwd"][0]
        self._note((number, GRADIENT, ""), largest(gradient), quantizer)

    def _note(self, tensor: tuple[int, int, str], amax: Tensor, quantizer: Any) -> None:
        scale = torch.full_like(amax, UNKNOWN)
        used = scale
        if self._delayed:  # of other recipes a scale that is kept may be the last tensor's
            scale = quantizer.scale.detach().float().reshape(())
            used = amax * scale / self._largest[tensor[1]]
        found = torch.stack((amax, scale, used))
        before = self._seen.get(tensor)
        self._seen[tensor] = found if before is None else torch.maximum(before, found)


def _layers(model: torch.nn.Module) -> Iterator[Any]:
    """Transformer Engine's linear layers: those with quantizers and weights."""
    for module in model.modules():
        if hasattr(module, "quantizers") and hasattr(module, "weight_names"):
            yield module


def largest(tensor: Tensor) -> Tensor:
    """The largest absolute value, a scalar float32; NaN where there is one."""
    if hasattr(tensor, "_quantizer"):  # a parameter in FP8
        tensor = tensor.dequantize()
    if not tensor.numel():
        return torch.zeros((), device=tensor.device)
    low, high = tensor.detach().aminmax()
    return torch.maximum(-low, high).float()


def largest_normed(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """The largest absolute value of x · w / √(mean(x²) + ε), `hidden` [..., width] under an RMSNorm
    with `weight` [width]; a scalar float32."""
    squares = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32).square()
    low, high = (hidden * weight).aminmax(dim=-1)
    rows = torch.maximum(-low, high).float()
    return (rows / (squares / hidden.shape[-1] + epsilon).sqrt()).amax()
