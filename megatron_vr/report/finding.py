"""One line of what `doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One part; `found` is its version and what is known of it, None where it is missing."""

    name: str
    found: str | None
    needed_for: str
    without_it: str
