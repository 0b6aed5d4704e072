"""What the log-prob head needs (see `models.log_prob`). Pure."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.widths import Widths

_FLOAT32 = 4

# Bytes of logits where the chunk is "auto": `models.gpt` on a CPU and on a GPU, not imported here,
# since it brings Megatron.
AUTO_LOGITS = {"plain": 2**27, "te": 2**30}


@dataclass(frozen=True)
class HeadMemory:
    """`kept` until the backward pass, which begins with `backward`; `forward` the most while it
    computes. Each includes what is kept."""

    kept: int
    backward: int
    forward: int


def chunk_of(case: Case) -> int:
    """Positions that are projected at once."""
    if case.log_prob_chunk != "auto":
        return case.log_prob_chunk
    return max(1, AUTO_LOGITS[case.spec] // (Widths.of(case).rows * _FLOAT32))


def training_head(case: Case) -> HeadMemory:
    """With a log-prob for every token: hidden states at the targets and their gradient are kept;
    while it computes there are a chunk's logits, once more in the weights' type, the part of the
    weight's gradient that they give, and the hidden states as the last norm left them."""
    w = Widths.of(case)
    kept = 2 * w.whole + _small(w)
    single = case.architecture.tied and case.layout.pipeline == 1
    # Autograd holds zeros until it adds the embedding's own gradient to them.
    zeros = w.rows * w.hidden * w.item if single else 0
    copies = 0 if w.item == _FLOAT32 else w.item
    logits = _chunk(case, w) * w.rows * (_FLOAT32 + copies)
    weight = w.rows * w.hidden * copies
    return HeadMemory(kept, kept + zeros, kept + w.boundary + w.gathered + logits + weight)


def scoring_head(case: Case) -> int:
    """Bytes while it computes: hidden states and a chunk's logits, before and after rounding."""
    w = Widths.of(case)
    copies = 0 if w.item == _FLOAT32 else w.item
    logits = _chunk(case, w) * w.rows * (_FLOAT32 + copies)
    return w.boundary + w.gathered + w.whole + logits + _small(w)


def _chunk(case: Case, w: Widths) -> int:
    return min(chunk_of(case), w.tokens)


def _small(w: Widths) -> int:
    """Labels, weights, log-probs and normalisers."""
    return w.tokens * (8 + 4 * _FLOAT32)
