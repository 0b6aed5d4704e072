"""What a layer in plain torch keeps: every operation its own, as on a CPU. Measured by the tests.

Per token, item e (4 for float32), t tensor ranks, s the sequence split:

    each norm           its input and the normalised input, in float32 even for bfloat16, 1/rms and
                        the output: 4·2h/s + 4/s + e·h/s
    query and key norms the same of q/t and k/t; queries are a copy of their part of the projection
    projection          queries, keys and values as projected: e·(q + 2k)/t, kept by its views
    rotary positions    sines and cosines, for queries and for keys: 4·e·d
    attention           queries, keys, output: e·(2q + k)/t, log-sum-exp 4·heads/t; with context
                        parallelism copies of them (`_context`)
    MLP                 its projections, SiLU, the linear half once more, product: e·5f/t
"""

from __future__ import annotations

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.layer import LayerMemory
from megatron_vr.cluster.planner.widths import Widths

_FLOAT32 = 4


def plain_layer(case: Case) -> LayerMemory:
    """One layer of `case`, of packs that need no padding between their sequences."""
    w = Widths.of(case)
    statistics = w.tokens * _FLOAT32 * w.heads
    common = 2 * _norm(w) + _attention(case, w) + _mlp(case, w)
    return LayerMemory(
        kept=common + statistics + _context(case, w),
        kept_selective=common,
        backward=_backward(case, w),
        forward=_forward(case, w),
    )


def norm_kept(w: Widths) -> int:
    """A norm's input and its normalised input, in float32, and 1/rms."""
    return w.split * _FLOAT32 * (2 * w.hidden + 1)


def _norm(w: Widths) -> int:
    return norm_kept(w) + w.boundary


def _attention(case: Case, w: Widths) -> int:
    mixed = w.queries + 2 * w.keys
    tables = 4 * w.head_dim
    numbers = mixed + tables + 2 * w.queries + w.keys
    kept = w.tokens * w.item * numbers
    if not case.architecture.qk_norm:
        return kept
    # In float32 a norm's input is what was projected; keys are a view of it.
    copies = w.queries if w.item == _FLOAT32 else w.queries + w.keys
    normed = copies + w.queries + w.keys + w.heads + w.kv_heads
    return kept + w.tokens * _FLOAT32 * normed


def _context(case: Case, w: Widths) -> int:
    """With context parallelism: keys and values of all ranks, their copies as the rank's two
    chunks of a sequence see them, and the queries and outputs of these."""
    ranks = case.layout.context
    if ranks == 1:
        return 0
    pack = w.tokens * ranks
    seen = pack + pack // (2 * ranks)
    return w.item * (2 * w.keys * (pack + seen) + 2 * w.tokens * w.queries)


def _mlp(case: Case, w: Widths) -> int:
    experts = case.architecture.experts
    if experts is None:
        return w.tokens * w.item * 5 * w.units
    places = w.tokens * experts.per_token
    scores = w.split * 3 * experts.count * _FLOAT32 + places * 2 * 8
    # Measured: what goes to the experts and what they give is kept once more.
    return scores + 2 * w.boundary + places * w.item * (w.hidden + 5 * w.units)


def _backward(case: Case, w: Widths) -> int:
    """The larger of three moments of the MLP's backward pass, above what is still kept then."""
    units = w.tokens * w.units * w.item
    weight = w.item * w.hidden * w.units
    moments = (
        w.boundary + w.gathered + units + weight,
        w.boundary + units,
        2 * w.boundary + w.whole + w.gathered + 2 * weight - 3 * units,
    )
    return max(moments)


def _forward(case: Case, w: Widths) -> int:
    units = w.tokens * w.units * w.item
    return 4 * w.boundary + w.gathered + 5 * units
