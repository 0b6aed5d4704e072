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
    w = Widths.of(case)
    item = w.item if case.spec == "te" else _FLOAT32
    return max(1, AUTO_LOGITS[case.spec] // (w.rows * item))


def training_head(case: Case) -> HeadMemory:
    """With a log-prob for every token: hidden states at the targets and their gradient are kept;
    while it computes there are a chunk's logits and the hidden states as the last norm left them.

    Without a GPU also the logits once more in the weights' type, and the part of the weight's
    gradient that they give."""
    w = Widths.of(case)
    kept = 2 * w.whole + _small(w)
    single = case.architecture.tied and case.layout.pipeline == 1
    # Autograd holds zeros until it adds the embedding's own gradient to them.
    zeros = w.rows * w.hidden * w.item if single else 0
    weight = 0 if case.spec == "te" else w.rows * w.hidden * _copy(w)
    logits = _logits(case, w)
    return HeadMemory(kept, kept + zeros, kept + w.boundary + w.gathered + logits + weight)


def scoring_head(case: Case) -> int:
    """Bytes while it computes: hidden states and a chunk's logits."""
    w = Widths.of(case)
    return w.boundary + w.gathered + w.whole + _logits(case, w) + _small(w)


def _logits(case: Case, w: Widths) -> int:
    """A chunk's: on a GPU as the product leaves them, else float32 and the product's own."""
    item = w.item if case.spec == "te" else _FLOAT32 + _copy(w)
    return _chunk(case, w) * w.rows * item


def _copy(w: Widths) -> int:
    return 0 if w.item == _FLOAT32 else w.item


def _chunk(case: Case, w: Widths) -> int:
    return min(chunk_of(case), w.tokens)


def _small(w: Widths) -> int:
    """Labels, weights, log-probs and normalisers."""
    return w.tokens * (8 + 4 * _FLOAT32)
