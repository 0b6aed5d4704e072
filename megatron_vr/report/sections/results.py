"""What the run was and what came out: the table, its bars, and one plain sentence."""

from __future__ import annotations

from collections.abc import Mapping

from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.report.blocks import Block, Cell, Line, Missing, Picture, Section, Table, Words
from megatron_vr.report.evaluated import read_evaluation
from megatron_vr.report.plots.bars import BarPanel, Bars, grouped_bars
from megatron_vr.report.plots.lines import Line as Curve
from megatron_vr.report.plots.lines import LinePanel, line_panels
from megatron_vr.report.plots.style import row_colours
from megatron_vr.report.questions import Question
from megatron_vr.report.results import (
    CLOSE,
    Evaluated,
    Scope,
    difference,
    marks,
    scopes,
    score,
    shared_metrics,
)
from megatron_vr.report.run_folder import RunFolder
from megatron_vr.report.sections.caution import caution
from megatron_vr.report.wording import (
    METRIC_NAMES,
    amount,
    decimal,
    describe,
    listed,
    percent,
    points,
    policy_name,
)


def results_section(
    run: RunFolder,
    rows: Mapping[str, Evaluated],
    asked: Mapping[str, Question],
) -> Section:
    """`rows` are the evaluations there are, `asked` the held-out questions."""
    unknown: dict[str, str | None] = {name: None for row in rows.values() for name in row.ids}
    where = scopes(unknown | {question.id: question.band for question in asked.values()})
    blocks: list[Block] = []
    if rows:
        blocks.append(Words(sentence(rows, where[0])))
        blocks.append(_table(run, rows, where))
        missing = [row for row in run.rows if row not in rows]
        if missing:
            blocks.append(Missing(f"Not evaluated yet: {listed(missing)}."))
        blocks.append(_bars(run, rows, where))
        blocks += _over_iterations(run, where[0])
    else:
        blocks.append(Missing("No row has been evaluated yet, so there is no table of results."))
    blocks.append(caution(run, rows, where))
    return Section("results", "Results", blocks)


def sentence(rows: Mapping[str, Evaluated], everything: Scope) -> str:
    """What the table shows on the mean over samples, and how far from the next row it is."""
    of_row = {name: score(row, "accuracy", everything) for name, row in rows.items()}
    known = {name: found for name, found in of_row.items() if found}
    main = known.get(MAIN_ARM)
    if main is None:
        return f"Only {listed(list(known))} has been evaluated so far."
    told = (
        f"On {amount(main.count, 'held-out question')}, {percent(main.value)} of variational's "
        "samples are right"
    )
    if "start" in known:
        told += f", {percent(known['start'].value)} of the start's"
    rivals = {name: found for name, found in known.items() if name not in (MAIN_ARM, "start")}
    if not rivals:
        return f"{told}."
    best = max(rivals, key=lambda name: rivals[name].value)
    gap = difference(rows[MAIN_ARM], rows[best], "accuracy", everything)
    if gap is None:
        return f"{told}."
    rest = (
        f"and {percent(rivals[best].value)} of {best}'s, the best of the other rows: {points(gap)}"
    )
    if abs(gap.value) <= CLOSE * gap.error:
        rest += ", which these questions do not tell from zero"
    return f"{told}, {rest}."


def metric_title(metric: str) -> str:
    """The metric as a column's head."""
    return METRIC_NAMES.get(metric, metric)


def _table(run: RunFolder, rows: Mapping[str, Evaluated], where: list[Scope]) -> Table:
    colours = row_colours(run.rows)
    metrics = shared_metrics(rows)
    marked = {(m, s.name): marks(rows, m, s) for m in metrics for s in where}
    lines = []
    for name in run.rows:
        if name not in rows:
            continue
        cells = []
        for scope in where:
            for metric in metrics:
                found = score(rows[name], metric, scope)
                mark = marked[metric, scope.name][name]
                cells.append(
                    Cell(decimal(found.value), f"±{decimal(found.error)}", mark)  # type: ignore[arg-type]
                    if found
                    else Cell("–")
                )
        about = (
            f"{policy_name(0)}: before any iteration"
            if name == "start"
            else describe(run.arms[name])
        )
        lines.append(Line(name, cells, colours[name], about))
    heads = [
        (f"{scope.name} ({len(scope.ids):,})", [metric_title(m) for m in metrics])
        for scope in where
    ]
    return Table(
        heads,
        lines,
        caption="Shares of held-out questions answered correctly, ± one standard error over "
        "questions. Dark: the best row of a column; light: within two standard errors of the best "
        "(paired, since all rows answer the same questions).",
        corner="row",
    )


def _bars(run: RunFolder, rows: Mapping[str, Evaluated], where: list[Scope]) -> Picture:
    colours = row_colours(run.rows)
    metrics = [metric for metric in shared_metrics(rows) if metric != "greedy"]
    panels = []
    for metric in metrics:
        series = []
        for name in (row for row in run.rows if row in rows):
            found = [score(rows[name], metric, scope) for scope in where]
            series.append(
                Bars(
                    name,
                    colours[name],
                    [s.value if s else None for s in found],
                    [s.error if s else 0.0 for s in found],
                )
            )
        title = f"{metric_title(metric).capitalize()}{_gains(rows, metric, where)}"
        groups = [scope.name for scope in where]
        panels.append(BarPanel(title, groups, series, "band of difficulty", "share correct"))
    alt = "Share of held-out questions answered correctly per band and row, with standard errors"
    return Picture("accuracy", grouped_bars(panels), alt)


def _gains(rows: Mapping[str, Evaluated], metric: str, where: list[Scope]) -> str:
    """From the start to the run's result, over all and in the last band."""
    if MAIN_ARM not in rows or "start" not in rows:
        return " of what is evaluated so far"
    told = f": {_change(rows, metric, where[0])}"
    if len(where) > 1:
        told += f" ({where[-1].name}: {_change(rows, metric, where[-1])})"
    return told


def _change(rows: Mapping[str, Evaluated], metric: str, scope: Scope) -> str:
    found = (score(rows[name], metric, scope) for name in ("start", MAIN_ARM))
    return " → ".join(decimal(one.value, 2) if one else "–" for one in found)


def _over_iterations(run: RunFolder, everything: Scope) -> list[Block]:
    """Accuracy of every row after each iteration, where there are several."""
    if run.settings.run.iterations == 1:
        return []
    colours = row_colours(run.rows)
    start = run.find("evaluate", MAIN_ARM, 0)
    lines = []
    for arm in run.arms:
        x, y, errors = [], [], []
        for t in range(run.settings.run.iterations + 1):
            stage = start if t == 0 else run.find("evaluate", arm, t)
            found = score(read_evaluation(stage), "accuracy", everything) if stage else None
            if found:
                x.append(float(t))
                y.append(found.value)
                errors.append(found.error)
        lines.append(Curve(arm, colours[arm], x, y, errors))
    panel = LinePanel(
        "Mean of samples after each iteration", lines, "iteration t (0: the start)", "share correct"
    )
    png = line_panels([panel], dots=True)
    return [Picture("iterations", png, "Share of correct samples of each row over iterations")]
