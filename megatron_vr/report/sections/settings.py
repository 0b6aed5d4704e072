"""Under which settings, with what installed, and how far each stage is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import yaml

from megatron_vr.models.parts import installed
from megatron_vr.report.blocks import (
    Block,
    Cell,
    Code,
    Folded,
    Line,
    Missing,
    Section,
    Table,
    Words,
)
from megatron_vr.report.plots.style import row_colours
from megatron_vr.report.run_folder import SETTINGS, RunFolder, Stage
from megatron_vr.report.wording import amount, listed

SHOWN_VERSIONS = ("megatron-vr", "megatron-core", "torch", "transformers", "pyarrow", "numpy")


def settings_section(run: RunFolder) -> Section:
    """Stages, what the comparisons change, versions, and the settings in full."""
    blocks: list[Block] = []
    if not run.stages:
        blocks.append(Missing("No stage has begun yet."))
    elif all(stage.done for stage in run.stages.values()):
        blocks.append(Folded("Stages and what each left", [_stages(run)]))
    else:
        blocks.append(_stages(run))
    strangers = run.strangers()
    if strangers:
        names = listed([str(stage.path.relative_to(run.path)) for stage in strangers])
        blocks.append(
            Words(
                f"Made from stages that are no longer in this folder (settings changed, or they "
                f"were deleted): {names}.",
                "warning",
            )
        )
    if run.settings.comparisons:
        blocks.append(_comparisons(run))
    blocks.append(_versions())
    text = (run.path / SETTINGS).read_text(encoding="utf-8")
    blocks.append(Code("All settings of this run", text))
    return Section("settings", "Settings", blocks)


def _stages(run: RunFolder) -> Table:
    colours = row_colours(run.rows)
    stages = [stage for stage in run.stages.values() if stage.arm in run.arms]
    order = {stage.path: number for number, stage in enumerate(_in_running_order(run, stages))}
    stages.sort(key=lambda stage: order[stage.path])
    timed = any("seconds" in stage.summary() for stage in stages)
    lines = []
    for stage in stages:
        told = stage.summary()
        numbers = Cell(_numbers(told))
        cells = [Cell(str(stage.iteration)), Cell(_state(stage)), numbers]
        if timed:
            seconds = told.get("seconds")
            cells.insert(2, Cell(f"{seconds:,.0f}" if seconds is not None else "–"))
        lines.append(Line(f"{stage.label} ({stage.arm})", cells, colours[stage.arm]))
    heads = ["iteration", "state", *(["seconds"] if timed else []), "result"]
    caption = "Stages that have begun, inputs before what uses them."
    return Table([("", heads)], lines, caption, "stage", words=True)


def _in_running_order(run: RunFolder, stages: list[Stage]) -> list[Stage]:
    """Inputs first; among stages that could be next, by iteration."""
    waiting = sorted(stages, key=lambda s: (s.iteration, list(run.arms).index(s.arm)))
    known = {stage.folder.fingerprint.digest for stage in waiting}
    placed: dict[str, Stage] = {}
    while waiting:
        ready = next(
            (s for s in waiting if all(d in placed or d not in known for d in s.inputs.values())),
            waiting[0],
        )
        waiting.remove(ready)
        placed[ready.folder.fingerprint.digest] = ready
    return list(placed.values())


def _state(stage: Stage) -> str:
    if stage.done:
        return "done"
    if stage.metrics():
        return f"under way: step {stage.metrics()[-1]['step']:.0f}"
    return f"under way: {amount(len(stage.parts), 'part')}"


def _numbers(summary: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in summary.items() if isinstance(v, (int, float)) and k != "seconds"}
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else
        f"{key.replace('_', ' ')} {value:,}"
        for key, value in plain.items()
    )  # fmt: skip


def _comparisons(run: RunFolder) -> Table:
    colours = row_colours(run.rows)
    lines = []
    for arm, changes in run.settings.comparisons.items():
        text = yaml.safe_dump(changes, default_flow_style=True, width=10_000).strip().strip("{}")
        lines.append(Line(arm, [Cell(text)], colours[arm]))
    return Table([("", ["differs from variational in"])], lines, "", "row", words=True)


def _versions() -> Table:
    found = {"python": platform.python_version(), **{n: installed(n) for n in SHOWN_VERSIONS}}
    lines = [Line(name, [Cell(there or "not installed")]) for name, there in found.items()]
    caption = "As installed where this page was written, which need not be where the run was."
    return Table([("", ["version"])], lines, caption, "package", words=True)
