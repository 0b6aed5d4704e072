"""Choosing the next token of each row from the model's logits."""

from __future__ import annotations

import torch
from torch import Tensor


def choose(
    logits: Tensor, uniforms: Tensor, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Next tokens by inverse CDF, and the model's own log-probs of them.

    Args:
        logits: `[rows, vocab]`, any floating dtype.
        uniforms: float64 `[rows]` in [0, 1), one per row; not looked at when `temperature` is 0.
        temperature: divides the log-probs; 0 takes the first most likely token.
        top_p: the nucleus of Holtzman et al. (2020), arXiv 1904.09751, after the temperature.

    Returns:
        token ids, int64 `[rows]`, and log p(token) at temperature 1, float64 `[rows]`.
    """
    # fp64: with a large vocabulary an fp32 running sum loses the tail tokens.
    log_probs = torch.log_softmax(logits.double(), dim=-1)
    if temperature == 0:
        tokens = log_probs.argmax(dim=-1)
    else:
        tempered = log_probs if temperature == 1 else (log_probs / temperature).log_softmax(dim=-1)
        tokens = _inverse_cdf(tempered.exp(), uniforms, top_p)
    return tokens, log_probs.gather(-1, tokens[:, None]).squeeze(-1)


def _inverse_cdf(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    if top_p == 1:
        return _search(probs, uniforms)
    ordered, ids = probs.sort(dim=-1, descending=True, stable=True)
    before = torch.zeros_like(ordered)
    before[:, 1:] = ordered.cumsum(dim=-1)[:, :-1]
    nucleus = torch.where(before < top_p, ordered, 0.0)
    return ids.gather(-1, _search(nucleus, uniforms)[:, None]).squeeze(-1)


def _search(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first index whose running sum exceeds `uniforms` times the whole sum."""
    running = weights.cumsum(dim=-1)
    total = running[:, -1]
    # Below the total even after rounding, so the search always ends on a token with weight.
    target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(running, target[:, None], right=True).squeeze(-1)
    # Only rows that are not numbers get past the end; their log-probs tell the caller.
    return found.clamp(max=weights.shape[-1] - 1)
