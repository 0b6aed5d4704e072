"""Lying bars of parts that make up a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_vr.report.plots.style import INK, add_legend, dress, new_figure, png

ROOM_FOR_NUMBERS = 6.0  # percent a part must have to carry its own
PER_BAR = 0.34  # inches


@dataclass(frozen=True)
class Part:
    """One part in its colour: its amount in each whole."""

    name: str
    colour: str
    amounts: Sequence[float]


def stacked_shares(
    title: str, wholes: Sequence[str], parts: Sequence[Part], totals: Sequence[str]
) -> bytes:
    """PNG with a bar of 100% for each of `wholes`, first on top, and its total in words beside it.

    The amounts of a whole must not all be zero.
    """
    figure, (axes,) = new_figure(1.5 + PER_BAR * len(wholes), 1)
    places = np.arange(len(wholes))
    amounts = np.array([part.amounts for part in parts], dtype=float)
    shares = 100 * amounts / amounts.sum(axis=0)
    starts = np.cumsum(shares, axis=0) - shares
    for part, share, start in zip(parts, shares, starts, strict=True):
        axes.barh(places, share, 0.7, left=start, color=part.colour, label=part.name)
        for place, (low, width) in enumerate(zip(start, share, strict=True)):
            if width >= ROOM_FOR_NUMBERS:
                words = f"{width:.0f}%"
                axes.text(
                    low + width / 2, place, words, ha="center", va="center", fontsize=7.5, color=INK
                )
    for place, total in enumerate(totals):
        axes.text(101, place, total, ha="left", va="center", fontsize=8, color=INK)
    dress(axes, title, "% of the time", "")
    axes.grid(visible=False)
    axes.set_yticks(places, list(wholes))
    axes.invert_yaxis()
    axes.set_xlim(0, 118)
    axes.set_xticks(range(0, 101, 20))
    add_legend(figure, [axes])
    return png(figure)
