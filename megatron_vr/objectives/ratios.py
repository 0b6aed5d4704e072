"""log π_θ(z|x) / q_φ(z|x,y'): how much likelier a trace is without the hint.

Inputs are log-probs summed over the trace, in nats, shape [n]; results are float64, shape [n].
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from megatron_vr.objectives.checks import counts, log_quantity, needed, require

Ratio = Literal["geometric-mean", "sequence", "none"]


def sequence_log_ratio(policy_log_prob: Tensor, sampler_log_prob: Tensor) -> Tensor:
    """Σ_t [log π_θ(z_t) − log q_φ(z_t)], the full product's log: unbiased, of great variance.

    Raises ValueError for NaN and +inf, and for −inf of the sampler: it did sample the trace.
    """
    policy = log_quantity("policy_log_prob", policy_log_prob)
    sampler = log_quantity("sampler_log_prob", sampler_log_prob)
    require(sampler > -torch.inf, "sampler_log_prob", sampler, "finite")
    return policy - sampler


def geometric_mean_log_ratio(
    policy_log_prob: Tensor, sampler_log_prob: Tensor, trace_length: Tensor
) -> Tensor:
    """(1/|z|) Σ_t [log π_θ(z_t) − log q_φ(z_t)]: some bias, far less variance.

    trace_length: |z| in tokens. Raises ValueError as `sequence_log_ratio`, and for an empty trace.
    """
    length = counts("trace_length", trace_length)
    return sequence_log_ratio(policy_log_prob, sampler_log_prob) / length


def log_ratio(
    ratio: Ratio,
    group: Tensor,
    *,
    policy_log_prob: Tensor | None = None,
    sampler_log_prob: Tensor | None = None,
    trace_length: Tensor | None = None,
) -> Tensor:
    """The named ratio of the traces of `group` [n]; columns that it does not use may be None.

    "none" is log 1 = 0: the traces come from π_θ itself.
    Raises ValueError for an unknown name, a needed column that is None, and as the ratio does.
    """
    if ratio == "none":
        return torch.zeros(group.shape, dtype=torch.float64, device=group.device)
    if ratio not in ("geometric-mean", "sequence"):
        raise ValueError(f"ratio {ratio!r} is none of geometric-mean, sequence, none")
    policy = needed("policy_log_prob", policy_log_prob)
    sampler = needed("sampler_log_prob", sampler_log_prob)
    if ratio == "sequence":
        return sequence_log_ratio(policy, sampler)
    return geometric_mean_log_ratio(policy, sampler, needed("trace_length", trace_length))
