"""The one loss of every stage: a weighted negative log-likelihood over a constant."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted_negative_log_likelihood(
    log_probs: Tensor, weights: Tensor, normaliser: float
) -> Tensor:
    """L = −(1/C) Σ_i w_i Σ_t log p(token_t), over the tokens given: a scalar, float32 or wider.

    log_probs: [tokens], with gradient; weights: [tokens], each token's w_i, a constant for the
    gradient; normaliser: C > 0, the same in every micro-batch and on every rank, so that the losses
    of parts of a batch add up to the batch's. A token of weight 0 adds nothing, whatever its
    log-prob. Raises ValueError for unlike shapes and a C that is not positive and finite.
    """
    if log_probs.shape != weights.shape:
        raise ValueError(
            f"a weight per token: {list(log_probs.shape)} log-probs, {list(weights.shape)} weights"
        )
    _check(normaliser)
    wide = torch.promote_types(log_probs.dtype, torch.float32)
    constant = weights.detach().to(wide)
    # Not 0 · log p: log p may be -inf there.
    counted = torch.where(constant == 0, 0.0, log_probs.to(wide))
    return -(constant * counted).sum() / normaliser


def derivative_by_log_prob(weights: Tensor, normaliser: float) -> Tensor:
    """dL/d log p(token) = −w/C of `weighted_negative_log_likelihood`: [tokens], float32 or wider.

    It does not depend on the log-probs, so it is known before the model has run.
    """
    _check(normaliser)
    return -weights.to(torch.promote_types(weights.dtype, torch.float32)) / normaliser


def _check(normaliser: float) -> None:
    if not 0 < normaliser < math.inf:
        raise ValueError(f"the normaliser is {normaliser}; it must be positive and finite")
