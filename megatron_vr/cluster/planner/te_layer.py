"""What a layer of Transformer Engine's modules keeps. Not measured: there was no GPU to ask.

Per token, n tokens on a context rank, item e = 2 bytes, tensor ranks t, sequence split s (t with
sequence parallelism, else 1), as Megatron 0.16 and Transformer Engine 2 save it:

    norm + QKV projection   the layer's input, and the normalised input: 2·e·h/s; 1/rms 4/s
    queries, keys, values   after the rotary positions: e·(q + 2k)/t
    attention               its output, which the projection keeps too: e·q/t; log-sum-exp 4·heads/t
    query and key norms     their inputs: e·(q + k)/t, 1/rms 4·(heads + kv heads)/t
    norm + first projection the same: 2·e·h/s, 4/s
    SwiGLU                  its input e·2f/t
    second projection       its input e·f/t

This is the count of Korthikanti et al. 2022 (Reducing Activation Recomputation in Large
Transformer Models, equations 2 and 4) without what this package's layers lack, attention scores
and dropout, and for a gated MLP. In FP8 the projections keep their inputs in one byte a number
(Hopper's products need the transposed copy only, in the backward pass), blockwise with a float32
scale for 128 of them.
"""

from __future__ import annotations

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.layer import LayerMemory
from megatron_vr.cluster.planner.widths import Widths

_FLOAT32 = 4
_BLOCK = 128


def te_layer(case: Case) -> LayerMemory:
    """One layer of `case`."""
    w = Widths.of(case)
    attention = w.tokens * w.item * (w.queries + 2 * w.keys)
    statistics = w.tokens * _FLOAT32 * w.heads
    normed = _input(case, w.split * w.hidden)
    shared = 2 * (w.boundary + w.split * _FLOAT32) + normed + _output(case, w) + _qk_norm(case, w)
    if case.architecture.experts is None:
        shared += normed + _mlp(case, w, w.tokens)
    else:
        shared += _experts(case, w)
    return LayerMemory(
        kept=shared + attention + statistics,
        # Values are a part of the projection's output, which a checkpoint keeps whole.
        kept_selective=shared + attention + w.tokens * w.item * (w.queries + w.keys),
        backward=_backward(case, w),
        forward=_forward(case, w),
    )


def _input(case: Case, numbers: int) -> int:
    """Bytes of `numbers` that a projection keeps to make its weight's gradient."""
    return _in_fp8(case, numbers) if case.fp8 else numbers * Widths.of(case).item


def _in_fp8(case: Case, numbers: int) -> int:
    """Bytes of `numbers` in FP8 with their scales."""
    scales = case.fp8 is not None and case.fp8.recipe == "blockwise"
    return numbers + (numbers * _FLOAT32 // _BLOCK if scales else 0)


def _output(case: Case, w: Widths) -> int:
    """Of the attention; in FP8 its projection keeps a copy of its own."""
    numbers = w.tokens * w.queries
    return numbers * w.item + (_in_fp8(case, numbers) if case.fp8 else 0)


def _qk_norm(case: Case, w: Widths) -> int:
    if not case.architecture.qk_norm:
        return 0
    statistics = _FLOAT32 * (w.heads + w.kv_heads)
    return w.tokens * (w.item * (w.queries + w.keys) + statistics)


def _mlp(case: Case, w: Widths, places: int) -> int:
    """SwiGLU's input and the second projection's, at `places`."""
    return places * w.item * 2 * w.units + _input(case, places * w.units)


def _places(case: Case, w: Widths) -> int:
    """Tokens times experts that each reaches, all of which are on this rank."""
    experts = case.architecture.experts
    return w.tokens * (1 if experts is None else experts.per_token)


def _experts(case: Case, w: Widths) -> int:
    """The norm's output, which the router keeps; the router's scores; tokens in the order of their
    experts, as gathered from the tensor ranks (with and without probabilities' gradients)."""
    experts = case.architecture.experts
    assert experts is not None
    places = _places(case, w)
    scores = w.split * 3 * experts.count * _FLOAT32 + places * 2 * 8
    normed = w.split * w.hidden * w.item
    return normed + scores + _input(case, places * w.hidden) + _mlp(case, w, places)


def _backward(case: Case, w: Widths) -> int:
    """The larger of three moments of an MLP's backward pass, above what is still kept then."""
    places = _places(case, w)
    units = places * w.units * w.item
    wide = w.whole * (places // w.tokens)
    gathered = wide if w.split < w.tokens else 0
    kept_input = _input(case, places * w.units)
    weight = w.item * w.hidden * w.units
    moments = (
        w.boundary + gathered + units + weight,
        w.boundary + 3 * units - kept_input,
        2 * w.boundary + wide + gathered + 2 * weight - kept_input,
    )
    return max(moments)


def _forward(case: Case, w: Widths) -> int:
    """The larger of two moments: the first projection, and the second."""
    places = _places(case, w)
    units = places * w.units * w.item
    wide = w.whole * (places // w.tokens)
    gathered = wide if w.split < w.tokens or places > w.tokens else 0
    return 4 * w.boundary + max(gathered + 2 * units, 3 * units + wide)
