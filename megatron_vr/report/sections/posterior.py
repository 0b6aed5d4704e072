"""What the hint does for the sampler: accuracy and coverage on the training questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from megatron_vr.report.blocks import Block, Cell, Line, Missing, Picture, Table, Words
from megatron_vr.report.plots.bars import BarPanel, Bars, grouped_bars
from megatron_vr.report.questions import Question
from megatron_vr.report.results import Evaluated, Scope, difference, scopes, score
from megatron_vr.report.run_folder import RunFolder
from megatron_vr.report.sampled import Sampled
from megatron_vr.report.wording import (
    amount,
    decimal,
    listed,
    percent,
    picture_name,
    points,
)

UNSEEN = "no reference"
METRICS = ("coverage", "accuracy")


def posterior_blocks(
    run: RunFolder, t: int, sampled: Sequence[Sampled], asked: Mapping[str, Question]
) -> list[Block]:
    """Of iteration t; `sampled` is all of it, `asked` are the training questions."""
    known = [s for s in sampled if s.accepted is not None and s.ids]
    waiting = listed([s.name for s in sampled if s.accepted is None])
    if not sampled:
        return [Missing("No traces are sampled yet.")]
    if not known:
        return [Missing(f"Without sampled answers: {waiting}. So accuracy is not known.")]
    blocks = _measured(run, t, known, asked)
    if waiting:
        blocks.append(Missing(f"Left out, for no answers were sampled after them: {waiting}."))
    return blocks


def first_traces(sampler: Sampled, k: int) -> Evaluated:
    """Of each question's first k traces, with the first answer of each: `coverage` (1 if any is
    accepted) and `accuracy` (the share accepted)."""
    if sampler.accepted is None:
        raise ValueError(f"the traces of {sampler.name} were not answered")
    hits: dict[str, list[bool]] = {}
    for owner, index, accepted in zip(sampler.owners, sampler.index, sampler.accepted, strict=True):
        if index < k:
            hits.setdefault(owner, []).append(bool(accepted))
    values = {
        "coverage": np.array([float(any(row)) for row in hits.values()]),
        "accuracy": np.array([sum(row) / k for row in hits.values()]),
    }
    return Evaluated(tuple(hits), values)


def training_scopes(asked: Mapping[str, Question]) -> list[Scope]:
    """All, the bands, and the questions no model saw a reference trace of, where there are both."""
    found = scopes({question.id: question.band for question in asked.values()})
    unseen = frozenset(question.id for question in asked.values() if not question.has_reference)
    if unseen and len(unseen) < len(asked):
        found.append(Scope(UNSEEN, unseen))
    return found


def _measured(
    run: RunFolder, t: int, samplers: Sequence[Sampled], asked: Mapping[str, Question]
) -> list[Block]:
    k = min(sampler.per_question for sampler in samplers)
    where = training_scopes(asked)
    measured = {sampler.name: first_traces(sampler, k) for sampler in samplers}
    heads = [(f"{s.name} ({len(s.ids):,})", METRICS) for s in where]
    lines = [Line(s.name, _cells(measured[s.name], where), s.colour, _about(s)) for s in samplers]
    caption = (
        f"Training questions. Coverage: the share with at least one accepted among the first {k} "
        "traces, by the first answer after each. Accuracy: the share of those traces accepted. "
        "± one standard error over questions."
    )
    return [
        Words(_sentence(samplers, measured, where[0], k)),
        Table(heads, lines, caption, "sampler"),
        _picture(run, t, samplers, measured, where, k),
        *_unequal(samplers),
    ]


def _cells(row: Evaluated, where: Sequence[Scope]) -> list[Cell]:
    found = [score(row, metric, scope) for scope in where for metric in METRICS]
    return [Cell(decimal(s.value), f"±{decimal(s.error)}") if s else Cell("–") for s in found]


def _about(sampler: Sampled) -> str:
    settings = sampler.settings
    sampling = settings.rollouts if sampler.of_policy else settings.traces
    sees = "sees the hint" if sampler.hinted else "sees no hint"
    return f"{sees}, temperature {sampling.temperature:g}"


def _sentence(
    samplers: Sequence[Sampled], measured: Mapping[str, Evaluated], everything: Scope, k: int
) -> str:
    told = []
    for sampler in samplers:
        found = score(measured[sampler.name], "coverage", everything)
        if found:
            told.append(f"{percent(found.value)} for the {sampler.name}")
    text = f"Training questions with a correct trace among {k}: {listed(told)}."
    hinted = next((s.name for s in samplers if s.hinted), None)
    for other in (s.name for s in samplers if not s.hinted):
        gap = (
            difference(measured[hinted], measured[other], "coverage", everything)
            if hinted
            else None
        )
        if gap:
            text += f" With the hint against the {other}: {points(gap)}."
    return text


def _picture(
    run: RunFolder,
    t: int,
    samplers: Sequence[Sampled],
    measured: Mapping[str, Evaluated],
    where: Sequence[Scope],
    k: int,
) -> Picture:
    panels = []
    says = {
        "coverage": f"Coverage: any of the first {k} traces is right",
        "accuracy": "Accuracy: share of traces that are right",
    }
    for metric in METRICS:
        series = []
        for sampler in samplers:
            found = [score(measured[sampler.name], metric, scope) for scope in where]
            values = [s.value if s else None for s in found]
            series.append(
                Bars(sampler.name, sampler.colour, values, [s.error if s else 0 for s in found])
            )
        groups = [scope.name for scope in where]
        panels.append(
            BarPanel(says[metric], groups, series, "training questions", f"share ({metric})")
        )
    return Picture(
        picture_name("posterior", t, len(run.iterations)),
        grouped_bars(panels),
        "Coverage and accuracy of each sampler per band, with standard errors",
    )


def _unequal(samplers: Sequence[Sampled]) -> list[Block]:
    """A warning where samplers differ in more than the hint."""
    told = []
    heat = {
        (s.settings.rollouts if s.of_policy else s.settings.traces).temperature for s in samplers
    }
    if len(heat) > 1:
        told.append("temperatures differ")
    lengths = {
        (train.steps, train.epochs, train.batch_size)
        for s in samplers
        for train in [s.settings.policy if s.of_policy else s.settings.posterior.train]
    }
    if len(lengths) > 1:
        told.append(f"{amount(len(lengths), 'length')} of training are compared")
    if not told:
        return []
    return [Words(f"Not the hint alone: {listed(told)}.", "warning")]
