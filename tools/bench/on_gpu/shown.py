"""The results for people: a table in the terminal, the page's table, a picture of the losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.bench.on_gpu.goals import Goal, goals
from tools.bench.on_gpu.page import table
from tools.bench.on_gpu.record import REHEARSAL

_MET = {True: "met", False: "not met", None: ""}


def markdown(content: Mapping[str, Any]) -> str:
    """The table of docs/gpu-results.md, and what was not measured; a sentence for a rehearsal."""
    if content["rehearsal"]:
        return REHEARSAL
    card = content["parts"].get("rate", {}).get("cases", {}).get("card", {})
    name = card.get("rows", {}).get("card", {}).get("name", "a card that was not asked its name")
    versions = ", ".join(f"{part} {version}" for part, version in content["versions"].items())
    provenance = f"{content['date']}, {name}, {versions}, `{content['command']}`"
    return "\n".join([table(goals(content), provenance), "", *_missing(content)])


def _missing(content: Mapping[str, Any]) -> Iterator[str]:
    """What was not measured, and why."""
    for part, found in content["parts"].items():
        for case, entry in found["cases"].items():
            if entry["status"] != "done":
                yield f"- {part}, {case}: {entry['status']}: {entry['why']}"
            for name, row in entry["rows"].items():
                if "failed" in row:
                    yield f"- {part}, {case}, {name}: failed: {row['failed']}"


def show(content: Mapping[str, Any], console: Console) -> None:
    """The table of what was measured, and what was not."""
    if content["rehearsal"]:
        console.print(REHEARSAL, style="bold")
    else:
        lines = Table(title="on the GPU")
        for head in ("part", "comparison", "measured", "goal", "", "detail"):
            lines.add_column(head)
        for goal in goals(content):
            lines.add_row(*_cells(goal))
        console.print(lines)
    for line in _missing(content):
        console.print(line, markup=False)


def _cells(goal: Goal) -> Sequence[str]:
    return goal.part, goal.name, f"{goal.value:.3g}", goal.goal, _MET[goal.met], goal.detail


def draw_curves(content: Mapping[str, Any], file: Path) -> bool:
    """Draw the losses of the part `curves`; False where there are none."""
    cases = content["parts"].get("curves", {}).get("cases", {})
    found = {
        case: [float(loss) for loss in entry["rows"]["curve"]["losses"]]
        for case, entry in cases.items()
        if "curve" in entry["rows"]
    }
    if not found:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for case, losses in found.items():
        axes.plot(range(1, len(losses) + 1), losses, label=case, linewidth=1)
    rehearsed = " (a rehearsal: no FP8)" if content["rehearsal"] else ""
    axes.set_title(f"Training losses of the toy task{rehearsed}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per target)")
    axes.legend()
    figure.savefig(file, dpi=120)
    return True
