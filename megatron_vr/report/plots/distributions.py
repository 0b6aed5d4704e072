"""How a quantity is spread: histograms and cumulative shares, several on one panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_vr.report.plots.style import add_legend, dress, new_figure, png

Floats = NDArray[np.float64]
BINS = 24


@dataclass(frozen=True)
class Spread:
    """One series of a histogram: its values, in the unit of the panel's axis."""

    name: str
    colour: str
    values: Floats


@dataclass(frozen=True)
class SpreadPanel:
    """One panel; `low` and `high` bound its axis where given, else the values do."""

    title: str
    series: Sequence[Spread]
    x: str
    y: str
    low: float | None = None
    high: float | None = None
    whole: bool = False  # the values are whole numbers: bins are too
    cumulative: bool = False  # for each x the share at x or more


def spread_panels(panels: Sequence[SpreadPanel], height: float = 3.2) -> bytes:
    """PNG of the panels side by side; the first series of each is filled and on top."""
    figure, all_axes = new_figure(height, len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        edges = bin_edges(panel)
        for number, spread in enumerate(panel.series):
            if not spread.values.size:
                continue
            if panel.cumulative:
                x, share = at_least(spread.values, edges[0])
            else:
                x, share = histogram(spread, edges)
            above = 2 + len(panel.series) - number
            axes.plot(x, share, color=spread.colour, lw=1.7, label=spread.name, zorder=above)
            if number == 0:
                axes.fill_between(x, share, color=spread.colour, alpha=0.12, linewidth=0)
        dress(axes, panel.title, panel.x, panel.y)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
    add_legend(figure, all_axes)
    return png(figure)


def histogram(spread: Spread, edges: Floats) -> tuple[Floats, Floats]:
    """The middles of the bins and the percentage of the values in each."""
    counts, _ = np.histogram(np.clip(spread.values, edges[0], edges[-1]), edges)
    return (edges[:-1] + edges[1:]) / 2, 100 * counts / spread.values.size


def at_least(values: Floats, low: float) -> tuple[Floats, Floats]:
    """Corners of the falling staircase x → percentage of the values at x or more, from `low` on."""
    x, counts = np.unique(values, return_counts=True)
    above = values.size - np.concatenate([[0], np.cumsum(counts)])
    steps = np.stack([above[:-1], above[1:]], axis=1).ravel()
    corners = np.concatenate([[low], np.repeat(x, 2)])
    return corners, 100 * np.concatenate([[values.size], steps]) / values.size


def bin_edges(panel: SpreadPanel) -> Floats:
    """Edges that hold every value of the panel."""
    values = [spread.values for spread in panel.series if spread.values.size]
    low = panel.low if panel.low is not None else min((v.min() for v in values), default=0.0)
    high = panel.high if panel.high is not None else max((v.max() for v in values), default=1.0)
    if panel.whole:
        step = max(1, int(np.ceil((high - low + 1) / (2 * BINS))))
        return np.arange(np.floor(low), high + step + 1, step) - 0.5
    return np.linspace(low, high if high > low else low + 1.0, BINS + 1)
