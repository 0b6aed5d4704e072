"""How the importance weights are spread, and which questions they make the model learn from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_vr.objectives.groups import effective_sample_size
from megatron_vr.report.blocks import Block, Cell, Line, Missing, Picture, Table, Words
from megatron_vr.report.plots.distributions import Spread, SpreadPanel, spread_panels
from megatron_vr.report.plots.style import MUTED, row_colours
from megatron_vr.report.questions import Question
from megatron_vr.report.results import scopes
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.wording import decimal, percent, picture_name
from megatron_vr.traces.tables import WEIGHTS

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Weighed:
    """One row's weights; `ess` [questions with weights]; `mass` is chosen weight by question."""

    arm: str
    weights: Floats
    ess: Floats
    questions: int
    mass: Mapping[str, float]


def weights_blocks(run: RunFolder, t: int, asked: Mapping[str, Question]) -> list[Block]:
    """For each row that weighs traces of its own in iteration t."""
    weighed = [read_weights(stage) for stage in run.own("weigh", t)]
    if not weighed:
        return [Missing("No traces have been weighed yet.")]
    blocks: list[Block] = [Words(_sentence(run, weighed[0]))]
    if any(w.ess.size for w in weighed):
        blocks.append(_picture(run, t, weighed))
    if asked:
        blocks.append(_lean(run, weighed, asked))
    return blocks


def read_weights(stage: Stage) -> Weighed:
    """The weights table of one `weigh` stage."""
    owners: list[str] = []
    weights: list[float] = []
    mass: dict[str, float] = defaultdict(float)
    for row in stage.rows(WEIGHTS, ["problem_id", "weight", "chosen"]):
        owners.append(row["problem_id"])
        weights.append(row["weight"])
        mass[row["problem_id"]] += row["weight"] if row["chosen"] else 0.0
    place = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    column = torch.tensor(weights, dtype=torch.float64)
    group = torch.tensor([place[owner] for owner in owners], dtype=torch.int64)
    ess = effective_sample_size(column, group, len(place)).numpy()
    return Weighed(stage.arm, column.numpy(), ess[ess > 0], len(place), dict(mass))


def _sentence(run: RunFolder, weighed: Weighed) -> str:
    if not weighed.ess.size:
        return f"{weighed.arm}: no question has a trace of positive weight."
    settings = run.arms[weighed.arm]
    k = (settings.rollouts if settings.traces.sampler == "policy" else settings.traces).per_question
    return (
        f"{weighed.arm}: {percent(weighed.ess.size / weighed.questions)} of the questions have a "
        f"trace of positive weight; on these, weights count as {weighed.ess.mean():.2f} equal "
        f"traces of {k} on average (effective sample size). "
        f"{percent(float(np.mean(weighed.weights == 0)))} of the traces weigh nothing."
    )


def _picture(run: RunFolder, t: int, weighed: Sequence[Weighed]) -> Picture:
    colours = row_colours(run.rows)
    normalised = [w for w in weighed if run.arms[w.arm].weights.normalise == "question"]
    rho = [Spread(w.arm, colours[w.arm], w.weights[w.weights > 0]) for w in normalised]
    ess = [Spread(w.arm, colours[w.arm], w.ess) for w in weighed]
    panels = []
    if any(spread.values.size for spread in rho):
        half = np.median(rho[0].values) if rho[0].values.size else 0.0
        panels.append(
            SpreadPanel(
                f"{rho[0].name}: half of the weights are ≥ {decimal(half, 2)}",
                rho,
                "x: weight ρ̃ of traces that have any",
                "% of traces at x or more",
                low=0,
                high=1,
                cumulative=True,
            )
        )
    if any(spread.values.size for spread in ess):
        half = np.median(ess[0].values) if ess[0].values.size else 0.0
        panels.append(
            SpreadPanel(
                f"{ess[0].name}: half of the questions have ≥ {half:.1f}",
                ess,
                "x: effective sample size (traces)",
                "% of questions at x or more",
                low=1,
                cumulative=True,
            )
        )
    return Picture(
        picture_name("weights", t, len(run.iterations)),
        spread_panels(panels),
        "Distribution of the normalised importance weights and of the effective sample size",
    )


def _lean(run: RunFolder, weighed: Sequence[Weighed], asked: Mapping[str, Question]) -> Table:
    """Each band's share of the questions and of the weight that is learned from."""
    colours = row_colours(run.rows)
    bands = scopes({question.id: question.band for question in asked.values()})[1:]
    lines = [
        Line(
            "questions",
            [Cell(percent(len(band.ids) / len(asked))) for band in bands],
            MUTED,
            "each band's share of the training questions",
        )
    ]
    for w in weighed:
        total = sum(w.mass.values())
        shares = [sum(w.mass.get(i, 0.0) for i in band.ids) for band in bands]
        cells = [Cell(percent(share / total) if total else "–") for share in shares]
        lines.append(Line(w.arm, cells, colours[w.arm]))
    return Table(
        [("share of the weight of chosen traces", [band.name for band in bands])],
        lines,
        "Rows that lean to easy questions have more weight there than there are such questions.",
        "row",
    )
