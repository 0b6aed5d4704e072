"""Lower bounds of log P_θ(Y_x|x) from the log-weights of sampled traces.

`log_rho` is [questions, K], log ρ_k of K independent traces z_k ~ q_φ(z|x,y'); bounds are per
question, [questions], in nats. The gradient passes through ELBO and IWAE. A trace of ρ = 0 makes
the ELBO −inf; a question of such traces alone has every bound −inf, and no gradient (NaN).
All raise ValueError for another shape, and naming the [question, trace] of a NaN or +inf.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from megatron_vr.objectives.checks import log_quantity


def elbo(log_rho: Tensor) -> Tensor:
    """(1/K) Σ_k log ρ_k: in expectation log P_θ(Y_x|x) − KL(q_φ ‖ P_θ(z|x,Y_x))."""
    _check(log_rho)
    return log_rho.mean(dim=1)


def iwae(log_rho: Tensor) -> Tensor:
    """log (1/K) Σ_k ρ_k: in expectation between the ELBO (K = 1) and log P_θ(Y_x|x) (K → ∞)."""
    _check(log_rho)
    return log_rho.logsumexp(dim=1) - math.log(log_rho.shape[1])


def iwae_curve(log_rho: Tensor, max_subsets: int = 256, seed: int = 0) -> Tensor:
    """[questions, K] float64, no gradient: unbiased estimates of IWAE_1 … IWAE_K from K traces.

    Column k − 1 is the mean of IWAE_k over all subsets of k traces, or, where there are more than
    `max_subsets` ≥ 1 of them, over that many random ones, which `seed` alone determines.
    """
    _check(log_rho)
    if max_subsets < 1:
        raise ValueError(f"max_subsets is {max_subsets}; it must be at least 1")
    log_rho = log_rho.detach().to(torch.float64)
    traces = log_rho.shape[1]
    sizes = range(1, traces + 1)
    few = [size for size in sizes if math.comb(traces, size) <= max_subsets]
    if len(few) == traces:
        curve = torch.empty_like(log_rho)
    else:
        curve = _over_permutations(log_rho, max_subsets, seed)
    for size in few:
        curve[:, size - 1] = _over_subsets(log_rho, size)
    return curve


def _over_subsets(log_rho: Tensor, size: int) -> Tensor:
    """[questions]: the mean of IWAE over all subsets of `size` traces."""
    by_trace = log_rho.T.contiguous()
    total = torch.zeros_like(by_trace[0])
    # One at a time: all at once would hold a copy of the log-weights per subset.
    for subset in combinations(range(len(by_trace)), size):
        total += by_trace[list(subset)].logsumexp(dim=0)
    return total / math.comb(len(by_trace), size) - math.log(size)


def _over_permutations(log_rho: Tensor, count: int, seed: int) -> Tensor:
    """[questions, K]: the mean of IWAE_1 … IWAE_K over the heads of `count` random orders."""
    traces = log_rho.shape[1]
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros_like(log_rho)
    for _ in range(count):
        order = torch.randperm(traces, generator=generator).to(log_rho.device)
        total += log_rho[:, order].logcumsumexp(dim=1)
    sizes = torch.arange(1, traces + 1, dtype=log_rho.dtype, device=log_rho.device)
    return total / count - sizes.log()


def _check(log_rho: Tensor) -> None:
    if log_rho.dim() != 2 or log_rho.shape[1] < 1:
        raise ValueError(f"log_rho is {list(log_rho.shape)}; it must be [questions, K ≥ 1]")
    log_quantity("log_rho", log_rho)
