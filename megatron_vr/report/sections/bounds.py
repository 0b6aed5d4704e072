"""Lower bounds of log P(Y_x|x): the ELBO and IWAE with more and more traces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_vr.objectives.bounds import iwae, iwae_curve
from megatron_vr.objectives.ratios import sequence_log_ratio
from megatron_vr.report.blocks import Block, Missing, Picture, Words
from megatron_vr.report.plots.lines import Line, LinePanel, line_panels
from megatron_vr.report.plots.style import row_colours
from megatron_vr.report.results import Score, mean
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.sampled import Sampled, made_from
from megatron_vr.report.wording import amount, nats, picture_name
from megatron_vr.traces.tables import ANSWERS, SCORES

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bounds:
    """IWAE_1 … IWAE_K of questions all of whose K traces have an accepted answer, and IWAE_K of
    the questions with at least one such trace, [questions]; `questions` counts all."""

    curve: Floats  # [questions with all traces correct, K]
    last: Floats  # [questions with any trace correct]
    questions: int


def bounds_blocks(run: RunFolder, t: int, sampled: Sequence[Sampled]) -> list[Block]:
    """For each posterior of iteration t whose traces were scored and answered."""
    measured = []
    for sampler in sampled:
        found = None if sampler.of_policy else read_bounds(run, sampler)
        if found is not None:
            measured.append((sampler, found))
    if not measured:
        return [Missing("No posterior traces with log-probs and sampled answers yet.")]
    return _measured(run, t, measured)


def read_bounds(run: RunFolder, sampler: Sampled) -> Bounds | None:
    """log ρ_k = Σ log π(z_k) − Σ log q(z_k) + log accuracy_k, −inf for a trace without an
    accepted answer or that was not scored; None before both stages are done."""
    scores = made_from(run, "score", sampler.stage)
    answers = made_from(run, "answer", sampler.stage)
    if scores is None or answers is None:
        return None
    log_accuracy = _log_accuracies(answers)
    log_rho: dict[str, float] = {}
    columns = ["trace_id", "policy_log_prob", "sampler_log_prob"]
    for table in scores.tables(SCORES, columns):
        names = table.column("trace_id").to_pylist()
        policy, sampled = (
            torch.tensor(table.column(c).to_pylist(), dtype=torch.float64) for c in columns[1:]
        )
        ratios = sequence_log_ratio(policy, sampled).tolist()
        for name, ratio in zip(names, ratios, strict=True):
            log_rho[name] = ratio + log_accuracy.get(name, -math.inf)
    by_question: dict[str, list[float]] = {}
    for name, owner in zip(sampler.ids, sampler.owners, strict=True):
        by_question.setdefault(owner, []).append(log_rho.get(name, -math.inf))
    table = torch.tensor(list(by_question.values()), dtype=torch.float64)
    every = torch.isfinite(table).all(dim=1)
    some = torch.isfinite(table).any(dim=1)
    return Bounds(iwae_curve(table[every]).numpy(), iwae(table[some]).numpy(), len(by_question))


def _log_accuracies(answers: Stage) -> dict[str, float]:
    verdicts: dict[str, list[bool]] = {}
    for row in answers.rows(ANSWERS, ["trace_id", "accepted"]):
        verdicts.setdefault(row["trace_id"], []).append(row["accepted"])
    return {name: math.log(sum(row) / len(row)) for name, row in verdicts.items() if any(row)}


def _measured(run: RunFolder, t: int, measured: Sequence[tuple[Sampled, Bounds]]) -> list[Block]:
    colours = row_colours(run.rows)
    blocks: list[Block] = []
    lines = []
    for sampler, bounds in measured:
        blocks.append(Words(_sentence(sampler, bounds)))
        if not len(bounds.curve):
            continue
        scores = [mean(column) or Score(0, 0, 0) for column in bounds.curve.T]
        sizes = [float(k) for k in range(1, len(scores) + 1)]
        lines.append(
            Line(
                sampler.name,
                colours[sampler.arm],
                sizes,
                [score.value for score in scores],
                [score.error for score in scores],
            )
        )
    if lines:
        ends = f"ELBO {nats(lines[0].y[0])} → IWAE {nats(lines[0].y[-1])} nats"
        panel = LinePanel(
            f"More traces tighten the bound: {ends}", lines, "traces k (1: the ELBO)",
            "mean IWAE_k (nats)",
        )  # fmt: skip
        name = picture_name("bounds", t, len(run.iterations))
        alt = "Estimated IWAE bounds over the number of traces, with standard errors"
        blocks.append(Picture(name, line_panels([panel], dots=True), alt))
    return blocks + _caveats([sampler for sampler, _ in measured])


def _sentence(sampler: Sampled, bounds: Bounds) -> str:
    k = sampler.per_question
    out = bounds.questions - len(bounds.last)
    partly = len(bounds.last) - len(bounds.curve)
    told = f"{sampler.name.capitalize()}: "
    if len(bounds.last):
        told += (
            f"IWAE_{k} is {nats(float(bounds.last.mean()))} nats on average over the "
            f"{amount(len(bounds.last), 'question')} with at least one correct trace; "
        )
    told += f"{amount(out, 'question')} without any left out (the estimate there is −∞). "
    if len(bounds.curve):
        told += (
            f"The curve is of the {amount(len(bounds.curve), 'question')} all of whose traces are "
            f"correct; in {amount(partly, 'other')} a wrong trace makes the ELBO's estimate −∞."
        )
    else:
        told += "No question has only correct traces, so no curve over k can be drawn."
    return told


def _caveats(samplers: Sequence[Sampled]) -> list[Block]:
    told = (
        "ρ takes the full sequence ratio here, whatever the weights use, and π(Y|x,z) is estimated "
        "by the sampled answers. Leaving out questions makes the averages optimistic for the "
        "whole set."
    )
    bent = [s.name for s in samplers if _bent(s)]
    blocks: list[Block] = [Words(told, "quiet")]
    if bent:
        blocks.append(
            Words(
                "Traces were not drawn at temperature 1 and top-p 1, so they are not samples of q "
                "itself and these estimates need not lie below log P.",
                "warning",
            )
        )
    return blocks


def _bent(sampler: Sampled) -> bool:
    return sampler.settings.traces.temperature != 1 or sampler.settings.traces.top_p != 1
