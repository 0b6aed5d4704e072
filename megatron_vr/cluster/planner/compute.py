"""Seconds of one layer and of the head for one micro-batch on one rank. Pure.

Matrix products take operations over the reached share of the peak; everything else that a layer
computes takes its bytes over the reached share of the memory's bandwidth. A backward pass has two
products for each of the forward pass's, attention five for two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.hardware import Device
from megatron_vr.cluster.planner.rates import TRAIN, TrainRates
from megatron_vr.training.flops import ModelFlops

GIGA = 1e9
WIDTH = 2  # bytes of an activation in bfloat16


@dataclass(frozen=True)
class Micro:
    """What one micro-batch computes: `tokens`, `pairs` of a query and a key (Σ n (n + 1) / 2 over
    its sequences of n tokens) and `targets`, positions that are projected to the vocabulary."""

    tokens: float
    pairs: float
    targets: float


@dataclass(frozen=True)
class Nodes:
    """The machines: GPUs of one `device` kind, `per_node` in each."""

    device: Device
    per_node: int


@dataclass(frozen=True)
class Seconds:
    """Of one layer's passes; what is recomputed belongs to the backward pass."""

    forward: float
    backward: float

    @property
    def both(self) -> float:
        """Of the two passes."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Costs:
    """What `case` costs on `nodes`. `overlaps_tensor`: tensor parallelism hides its communication
    (userbuffers; not this package, but much of what is published)."""

    case: Case
    nodes: Nodes
    rates: TrainRates = TRAIN
    overlaps_tensor: bool = False

    @cached_property
    def flops(self) -> ModelFlops:
        """Operations of the model's products."""
        return ModelFlops.of(self.case.architecture)

    def product(self, m: float, n: float, k: float, *, fp8: bool = False) -> float:
        """Seconds of the product [m, k] × [k, n]."""
        if min(m, n, k) <= 0:
            return 0.0
        device, rates = self.nodes.device, self.rates
        peak = device.peak("fp8" if fp8 else self.case.dtype)
        share = rates.fp8_product if fp8 else rates.product
        return 2 * m * n * k / (peak * share) * (1 + rates.small * (1 / m + 1 / n + 1 / k))

    def moved(self, count: float) -> float:
        """Seconds in which `count` bytes go through the device's memory."""
        return count / (self.nodes.device.memory_tbs * 1e12 * self.rates.memory)

    def linked(self, count: float, ranks: int) -> float:
        """Seconds in which `count` bytes go to a rank among `ranks` neighbouring ones."""
        device, rates = self.nodes.device, self.rates
        if ranks <= self.nodes.per_node:
            return count / (device.nvlink_gbs * GIGA * rates.nvlink)
        return count / (device.network_gbs * GIGA * rates.network)

    def products(self, micro: Micro) -> float:
        """Seconds of one layer's projections, forward."""
        a, tensor = self.case.architecture, self.case.layout.tensor
        tokens, fp8 = micro.tokens / self.case.layout.context, self.case.fp8 is not None
        queries, keys, hidden = a.heads * a.head_dim, a.kv_heads * a.head_dim, a.hidden_size
        seconds = self.product(tokens, (queries + 2 * keys) / tensor, hidden, fp8=fp8)
        seconds += self.product(tokens, hidden, queries / tensor, fp8=fp8)
        if a.experts is None:
            ffn, rows, copies = a.ffn_hidden_size, tokens, 1
        else:
            ffn, copies = a.experts.ffn_hidden_size, a.experts.count
            rows = tokens * a.experts.per_token / copies
        one = self.product(rows, 2 * ffn / tensor, hidden, fp8=fp8)
        one += self.product(rows, hidden, ffn / tensor, fp8=fp8)
        return seconds + copies * one

    def attention(self, micro: Micro) -> Seconds:
        """Of one layer's attention kernel."""
        a, layout = self.case.architecture, self.case.layout
        work = micro.pairs * self.flops.attention / a.layers / layout.tensor / layout.context
        peak = self.nodes.device.peak(self.case.dtype)
        forward = work / (peak * self.rates.attention_forward)
        return Seconds(forward, 2.5 * work / (peak * self.rates.attention_backward))

    def elementwise(self, micro: Micro) -> Seconds:
        """Of norms, residuals, rotary positions, SwiGLU, and casts to FP8 with their transposes."""
        a, layout = self.case.architecture, self.case.layout
        tokens, tensor = micro.tokens / layout.context, layout.tensor
        queries, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
        per_token = a.experts.per_token if a.experts else 1
        ffn = per_token * (a.experts.ffn_hidden_size if a.experts else a.ffn_hidden_size)
        whole = 10 * a.hidden_size / (tensor if layout.sequence_parallel else 1)
        split = (2 * (queries + keys) + 3 * ffn) / tensor
        forward = WIDTH * (whole + split)
        backward = WIDTH * (1.5 * whole + (2 * (queries + keys) + 5 * ffn) / tensor)
        if self.case.fp8:
            # Read in two bytes, written in one, and once more transposed.
            forward += 4 * (2 * a.hidden_size + (queries + ffn) / tensor)
            backward += 4 * (2 * a.hidden_size + (queries + 2 * keys + 2 * ffn) / tensor)
        return Seconds(self.moved(tokens * forward), self.moved(tokens * backward))

    def tensor_exchange(self, micro: Micro) -> Seconds:
        """Exposed exchange among tensor-parallel ranks of one layer.

        Forward two sums or, with sequence parallelism, two gathers and two reduce-scatters, which
        move as much; backward what precedes the row-parallel products, the rest runs beside the
        products of the weights' gradients.
        """
        layout = self.case.layout
        if layout.tensor == 1:
            return Seconds(0.0, 0.0)
        size = micro.tokens / layout.context * self.case.architecture.hidden_size * WIDTH
        one = self.linked(size * (layout.tensor - 1) / layout.tensor, layout.tensor)
        exposed = self.rates.exposed_tensor if self.overlaps_tensor else 1.0
        return Seconds(4 * one * exposed, 2 * one * exposed)

    def context_exchange(self, micro: Micro, attention: Seconds) -> Seconds:
        """What attention does not hide of the ring that passes keys and values on."""
        a, layout = self.case.architecture, self.case.layout
        if layout.context == 1:
            return Seconds(0.0, 0.0)
        keys = 2 * a.kv_heads * a.head_dim / layout.tensor * WIDTH
        size = (layout.context - 1) * micro.tokens / layout.context * keys
        ring = self.linked(size, layout.tensor * layout.context)
        # Backward the gradients of keys and values go round too.
        return Seconds(max(0.0, ring - attention.forward), max(0.0, 2 * ring - attention.backward))

    def layer(self, micro: Micro) -> Seconds:
        """Of one layer, with what `recompute` makes it compute again."""
        products, attention = self.products(micro), self.attention(micro)
        beside, tensor = self.elementwise(micro), self.tensor_exchange(micro)
        ring = self.context_exchange(micro, attention)
        forward = max(
            products + attention.forward + beside.forward + tensor.forward + ring.forward,
            self.rates.host,
        )
        backward = 2 * products + attention.backward + beside.backward
        backward = max(backward + tensor.backward + ring.backward, self.rates.host)
        again = {"none": 0.0, "selective": attention.forward, "full": forward}
        return Seconds(forward, backward + again[self.case.recompute])

    def head(self, micro: Micro, *, trains: bool) -> float:
        """Of the log-prob head: in training its gradients are made in the same pass."""
        a, layout = self.case.architecture, self.case.layout
        targets, rows = micro.targets / layout.context, a.vocab_size / layout.tensor
        products = self.product(targets, rows, a.hidden_size) * (3 if trains else 1)
        # Logits in float32: written, read for the maximum, the sum and the gradient.
        return products + self.moved(targets * rows * 4 * (6 if trains else 4))
