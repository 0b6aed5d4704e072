"""Which weighted traces the θ-step learns from. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Choice:
    """Whether a trace is chosen, and why not."""

    chosen: bool
    why: str


def choose(
    weights: Sequence[float],
    groups: Sequence[int],
    faults: Sequence[str],
    mode: Literal["all", "best"],
) -> list[Choice]:
    """A choice for each trace.

    weights: ρ̃ per trace; groups: its question; faults: why it cannot be learned from, or "".
    `all` takes every trace of positive weight; `best` the heaviest of each question, the first
    of equals.
    """
    best: dict[int, int] = {}
    for index, (weight, group) in enumerate(zip(weights, groups, strict=True)):
        if weight > 0 and (group not in best or weight > weights[best[group]]):
            best[group] = index
    choices = []
    for index, (weight, group, fault) in enumerate(zip(weights, groups, faults, strict=True)):
        if fault:
            choices.append(Choice(False, fault))
        elif group not in best:
            choices.append(Choice(False, "no correct trace"))
        elif weight == 0:
            choices.append(Choice(False, "weight zero"))
        elif mode == "best" and best[group] != index:
            choices.append(Choice(False, "not the best"))
        else:
            choices.append(Choice(True, ""))
    return choices
