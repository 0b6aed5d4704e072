"""Which traces the page shows in full, and all that the tables hold of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from megatron_vr.report.questions import Question
from megatron_vr.report.results import in_order
from megatron_vr.report.run_folder import RunFolder, Stage
from megatron_vr.report.sampled import Sampled, made_from
from megatron_vr.traces.tables import SCORES, TRACES, WEIGHTS

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """One trace: its row of each table, None where the stage is not done."""

    trace: Row
    weight: Row | None
    score: Row | None

    @property
    def owner(self) -> str:
        """The question's id."""
        return str(self.trace["problem_id"])


@dataclass(frozen=True)
class Candidate:
    """A trace that could be shown."""

    id: str
    owner: str
    weight: float
    usable: bool


def read_shown(
    run: RunFolder, sampler: Sampled, asked: Mapping[str, Question], count: int
) -> list[Shown]:
    """`count` traces of the sampler with what is known of them."""
    weigh = made_from(run, "weigh", sampler.stage)
    weights = {row["trace_id"]: row for row in weigh.rows(WEIGHTS, WEIGHTS.names)} if weigh else {}
    candidates = [
        Candidate(name, owner, weights[name]["weight"] if name in weights else 0.0, not fault)
        for name, owner, fault in zip(sampler.ids, sampler.owners, sampler.faults, strict=True)
    ]
    bands = {question.id: question.band or "" for question in asked.values()}
    names = choose(candidates, bands, count)
    traces = _rows(sampler.stage, TRACES, names)
    scored = made_from(run, "score", sampler.stage)
    scores = _rows(scored, SCORES, names) if scored else {}
    return [Shown(traces[name], weights.get(name), scores.get(name)) for name in names]


def choose(candidates: Sequence[Candidate], bands: Mapping[str, str], count: int) -> list[str]:
    """Ids of `count` traces: each question's heaviest and lightest, bands in turn.

    Within a band, questions whose weights differ most come first. The lightest is a usable trace
    where there is one.
    """
    by_owner: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_owner.setdefault(candidate.owner, []).append(candidate)
    pairs: dict[str, list[tuple[Candidate, Candidate]]] = {}
    for owner, own in by_owner.items():
        heaviest = max(own, key=lambda one: one.weight)
        lightest = min(own, key=lambda one: (one is heaviest, not one.usable, one.weight))
        pairs.setdefault(bands[owner], []).append((heaviest, lightest))
    for queue in pairs.values():
        queue.sort(key=lambda pair: pair[1].weight - pair[0].weight)
    in_turn = zip_longest(*(pairs[band] for band in in_order(pairs)))
    chosen = [one.id for pair in chain.from_iterable(in_turn) if pair for one in pair]
    return list(dict.fromkeys(chosen))[:count]


def _rows(stage: Stage, schema: pa.Schema, names: Sequence[str]) -> dict[str, Row]:
    wanted = pa.array(names, pa.string())
    found = {}
    for table in stage.tables(schema, schema.names):
        for row in table.filter(pc.is_in(table.column("trace_id"), wanted)).to_pylist():
            found[row["trace_id"]] = row
    return found
