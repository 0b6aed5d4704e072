"""How every chart looks, and the colour of each row."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

# Okabe and Ito's palette, safe for colour-blind readers; without its yellow, too pale on white.
MAIN = "#0072B2"
START = "#8A8F98"
OTHERS = ("#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#6F4E9B", "#7A7A29")
INK, MUTED, GRID = "#1F2933", "#66717F", "#E4E8ED"
WIDTH, ALONE = 10.2, 6.4  # inches: of several panels and of a single one
DPI = 200  # shown at half this size, so that it is sharp on dense screens


def row_colours(rows: Sequence[str]) -> dict[str, str]:
    """A colour for each row of the results table, the same wherever the row is drawn."""
    fixed = {"start": START, "variational": MAIN}
    others = [row for row in rows if row not in fixed]
    free = {row: OTHERS[i % len(OTHERS)] for i, row in enumerate(others)}
    return {row: fixed.get(row) or free[row] for row in rows}


def new_figure(height: float, panels: int) -> tuple[Figure, list[Axes]]:
    """A figure of `height` inches with panels side by side, as wide as the page for two or more."""
    width = WIDTH if panels > 1 else ALONE
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes)


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, axis labels and quiet lines."""
    axes.set_title(title, loc="left", fontsize=10, color=INK, pad=9, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=MUTED)
    axes.set_ylabel(y, fontsize=9, color=MUTED)
    axes.tick_params(labelsize=8.5, colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def add_legend(figure: Figure, panels: Sequence[Axes], columns: int = 6) -> None:
    """One legend under all panels; series of one look in several panels share an entry."""
    handles: dict[tuple[str, str], Any] = {}
    names: dict[tuple[str, str], list[str]] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            look = _look(handle)
            handles.setdefault(look, handle)
            if label not in names.setdefault(look, []):
                names[look].append(label)
    if len(handles) < 2:
        return
    figure.legend(
        list(handles.values()),
        [" / ".join(labels) for labels in names.values()],
        loc="outside lower center",
        ncols=min(columns, len(handles)),
        fontsize=8.5,
        frameon=False,
        labelcolor=INK,
        handlelength=1.4,
    )


def _look(handle: Any) -> tuple[str, str]:
    """Colour and line style of a line or of the first of a group of bars."""
    if isinstance(handle, Line2D):
        return str(handle.get_color()), str(handle.get_linestyle())
    return str(handle.patches[0].get_facecolor()), ""


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
