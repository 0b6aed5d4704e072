"""Grouped bars with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_vr.report.plots.style import INK, WIDTH, add_legend, dress, new_figure, png

ROOM_FOR_NUMBERS = 0.19  # inches a bar must be wide to carry its value
SPAN = 0.84  # of the room of a group, the rest separates groups


@dataclass(frozen=True)
class Bars:
    """One series: a value for each group (None: nothing to draw) and its standard error."""

    name: str
    colour: str
    values: Sequence[float | None]
    errors: Sequence[float]


@dataclass(frozen=True)
class BarPanel:
    """One panel of grouped bars."""

    title: str
    groups: Sequence[str]
    series: Sequence[Bars]
    x: str
    y: str


def grouped_bars(panels: Sequence[BarPanel], height: float = 3.4, top: float = 1.0) -> bytes:
    """PNG of the panels side by side, on axes from 0 to `top`; lines on bars are ± one error."""
    figure, all_axes = new_figure(height, len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        width = SPAN / max(1, len(panel.series))
        places = np.arange(len(panel.groups))
        for number, bars in enumerate(panel.series):
            at = places - SPAN / 2 + (number + 0.5) * width
            known = [i for i, value in enumerate(bars.values) if value is not None]
            heights = [float(bars.values[i] or 0.0) for i in known]
            axes.bar(at[known], heights, width * 0.92, color=bars.colour, label=bars.name)
            errors = [bars.errors[i] for i in known]
            axes.errorbar(
                at[known], heights, errors, fmt="none", ecolor=INK, elinewidth=1, capsize=1.8
            )
            if width * WIDTH / (len(panels) * max(1, len(panel.groups))) > ROOM_FOR_NUMBERS:
                for place, value, error in zip(at[known], heights, errors, strict=True):
                    axes.text(
                        place,
                        value + error + top * 0.012,
                        f"{value:.2f}".lstrip("0"),
                        ha="center",
                        va="bottom",
                        fontsize=7,
                        color=INK,
                    )
        dress(axes, panel.title, panel.x, panel.y)
        axes.set_xticks(places, list(panel.groups))
        axes.set_ylim(0, top * 1.06)
        axes.set_yticks(np.linspace(0, top, 6))
    add_legend(figure, all_axes)
    return png(figure)
