"""Lines over a number: training curves, bounds over K, results over iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from megatron_vr.report.plots.style import add_legend, dress, new_figure, png


@dataclass(frozen=True)
class Line:
    """Points in order of x; `errors` are standard errors of y, drawn as a band."""

    name: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class LinePanel:
    """One panel of lines."""

    title: str
    lines: Sequence[Line]
    x: str
    y: str


def line_panels(panels: Sequence[LinePanel], height: float = 2.9, dots: bool = False) -> bytes:
    """PNG of the panels side by side; the legend names each series once."""
    figure, all_axes = new_figure(height, len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        for line in panel.lines:
            marker = "o" if dots or len(line.x) < 3 else ""
            axes.plot(
                line.x,
                line.y,
                color=line.colour,
                linewidth=1.6,
                linestyle="--" if line.dashed else "-",
                marker=marker,
                markersize=4,
                label=line.name,
            )
            if line.errors:
                low = [y - e for y, e in zip(line.y, line.errors, strict=True)]
                high = [y + e for y, e in zip(line.y, line.errors, strict=True)]
                axes.fill_between(line.x, low, high, color=line.colour, alpha=0.16, linewidth=0)
        dress(axes, panel.title, panel.x, panel.y)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    add_legend(figure, all_axes)
    return png(figure)
