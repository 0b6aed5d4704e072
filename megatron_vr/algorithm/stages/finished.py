"""What a stage hands back to the runner, which then publishes the done marker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finished:
    """`parts` tables were written; `summary` is small JSON for people and the report."""

    parts: int = 0
    summary: Mapping[str, Any] = field(default_factory=dict)
