"""What the mathematics asks of its inputs, each refusal naming the entry at fault."""

from __future__ import annotations

import torch
from torch import Tensor


def require(good: Tensor, name: str, values: Tensor, rule: str) -> None:
    """Raise ValueError naming the first entry of `values` where `good` (bool) is false."""
    if bool(good.all()):
        return
    index = torch.nonzero(~good)[0].tolist()
    where = ", ".join(str(place) for place in index)
    raise ValueError(f"{name}[{where}] is {values[tuple(index)].item()}; it must be {rule}")


def log_quantity(name: str, values: Tensor) -> Tensor:
    """`values` as float64 without a gradient; raises ValueError for NaN and +inf, not for −inf."""
    values = values.detach().to(torch.float64)
    require(values < torch.inf, name, values, "a number or -inf")
    return values


def counts(name: str, values: Tensor) -> Tensor:
    """`values` as float64 without a gradient; raises ValueError below 1."""
    values = values.detach().to(torch.float64)
    require((values >= 1) & (values < torch.inf), name, values, "at least 1")
    return values


def probabilities(name: str, values: Tensor) -> Tensor:
    """`values` as float64 without a gradient; raises ValueError outside [0, 1]."""
    values = values.detach().to(torch.float64)
    require((values >= 0) & (values <= 1), name, values, "between 0 and 1")
    return values


def check_groups(values: Tensor, group: Tensor, groups: int) -> None:
    """Raise ValueError unless `values` [n] and `group` [n] fit, and group lies in [0, groups)."""
    if group.dim() != 1 or values.shape != group.shape:
        raise ValueError(
            f"a value and a group for each trace: shapes {list(values.shape)}, {list(group.shape)}"
        )
    if group.is_floating_point() or group.dtype == torch.bool:
        raise ValueError(f"group must hold integers, not {group.dtype}")
    require((group >= 0) & (group < groups), "group", group, f"in [0, {groups})")


def needed(name: str, column: Tensor | None) -> Tensor:
    """`column`, which must be there; raises ValueError naming it where it is None."""
    if column is None:
        raise ValueError(f"{name} is None, and the chosen estimator or ratio needs it")
    return column
