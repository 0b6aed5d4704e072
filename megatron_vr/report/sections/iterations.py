"""Sections that say the same of every iteration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_vr.report.blocks import Block, Heading, Section
from megatron_vr.report.run_folder import RunFolder


def per_iteration(
    run: RunFolder, name: str, title: str, make: Callable[[int], Sequence[Block]]
) -> Section:
    """A section of `make(t)` for t = 1 … T, under headings where T > 1."""
    blocks: list[Block] = []
    for t in run.iterations:
        if len(run.iterations) > 1:
            blocks.append(Heading(f"Iteration {t}"))
        blocks += make(t)
    return Section(name, title, blocks)
