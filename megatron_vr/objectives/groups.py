"""Sums and normalisation over the traces of each question, wherever in the table they are.

Traces are flat [n]; `group` [n] (integers) says which of `groups` questions each belongs to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_vr.objectives.checks import check_groups, log_quantity, require


def sum_by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] sums of `values` [n], the same to the last bit in any order of the traces."""
    check_groups(values, group, groups)
    order = values.argsort()
    total = torch.zeros(groups, dtype=values.dtype, device=values.device)
    return total.index_add_(0, group[order], values[order])


def max_by_group(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] maxima of `values` [n]; −inf for a group without traces."""
    check_groups(values, group, groups)
    lowest = torch.full((groups,), -torch.inf, dtype=values.dtype, device=values.device)
    return lowest.scatter_reduce_(0, group, values, "amax")


def size_by_group(group: Tensor, groups: int) -> Tensor:
    """[groups] float64: the number K of traces of each group."""
    ones = torch.ones(group.shape, dtype=torch.float64, device=group.device)
    return sum_by_group(ones, group, groups)


def has_weight(log_rho: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] bool: whether any trace of the group has ρ > 0.

    Raises ValueError naming the index of a NaN or +inf.
    """
    return max_by_group(log_quantity("log_rho", log_rho), group, groups) > -torch.inf


def normalise_by_group(log_rho: Tensor, group: Tensor, groups: int) -> Tensor:
    """ρ̃_k = ρ_k / Σ_j ρ_j over the traces j of k's group, from log ρ [n]; float64, no gradient.

    ρ = 0 (log ρ = −inf) gives exactly 0, and so does a whole group of zeros (see `has_weight`).
    Raises ValueError naming the index of a NaN or +inf.
    """
    log_rho = log_quantity("log_rho", log_rho)
    peak = max_by_group(log_rho, group, groups)
    peak = torch.where(peak > -torch.inf, peak, 0.0)
    scaled = (log_rho - peak[group]).exp()
    total = sum_by_group(scaled, group, groups)
    return scaled / torch.where(total > 0, total, 1.0)[group]


def effective_sample_size(weight: Tensor, group: Tensor, groups: int) -> Tensor:
    """[groups] float64: (Σ w)² / Σ w², between 1 and K; 0 for a group without weight.

    weight: [n], ≥ 0, in any scale. Raises ValueError naming the index of another one.
    """
    weight = weight.detach().to(torch.float64)
    require((weight >= 0) & (weight < torch.inf), "weight", weight, "finite and at least 0")
    peak = max_by_group(weight, group, groups)
    scaled = weight / torch.where(peak > 0, peak, 1.0)[group]
    squares = sum_by_group(scaled.square(), group, groups)
    total = sum_by_group(scaled, group, groups)
    return total.square() / torch.where(squares > 0, squares, 1.0)
