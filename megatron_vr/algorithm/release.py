"""Publish an exported model of a run: its facts become a model card, and both go to the hub."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_vr.algorithm.context import model_folder
from megatron_vr.algorithm.plan import Node, Plan
from megatron_vr.algorithm.run import Prepared
from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.convert import hub
from megatron_vr.errors import CheckpointError, SettingsError, StageError
from megatron_vr.models.parts import installed
from megatron_vr.problems.format_rules import POLICY_FILE, format_folder, read_rules
from megatron_vr.problems.problem import PROBLEM_SCHEMA
from megatron_vr.problems.source_settings import DatasetSource, FileSource, Source
from megatron_vr.problems.sources import describe
from megatron_vr.problems.templates import read_template
from megatron_vr.report.evaluated import read_evaluation
from megatron_vr.report.model_card import (
    Base,
    CardFacts,
    QuestionSet,
    ResultRow,
    ResultTable,
    read_front_matter,
    render,
    stated_licence,
)
from megatron_vr.report.results import Evaluated, scopes, score, shared_metrics
from megatron_vr.report.run_folder import Stage
from megatron_vr.report.wording import METRIC_NAMES, policy_name
from megatron_vr.report.wording import describe as describe_row

START = "start"
VERSIONS = ("megatron-vr", "megatron-core", "torch", "transformers")


def push_export(
    prepared: Prepared,
    arm: str,
    iteration: int,
    repo: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
) -> str:
    """Upload π of the row `arm` after `iteration` with its model card; the commit's address.

    Call it on one process only. `arm` may be `start` (with iteration 0). Raises SettingsError for
    a row or iteration that the run does not have, StageError where it is not exported yet, and
    otherwise as `hub.push_folder` does.
    """
    node = find_export(prepared.plan, arm, iteration)
    hub.model_files(model_folder(node))
    repo = hub.full_name(repo, endpoint=endpoint)
    card = render(card_facts(prepared, arm, iteration, repo, endpoint=endpoint))
    return hub.push_folder(
        model_folder(node),
        repo,
        private=private,
        extra={hub.CARD: card.encode()},
        message=f"Row {arm}, iteration {iteration}",
        endpoint=endpoint,
    )


def find_export(plan: Plan, arm: str, iteration: int) -> Node:
    """The finished export of π of the row `arm` after `iteration`; raises as `push_export`."""
    if arm not in plan.rows:
        raise SettingsError(f"{arm!r} is no row of this run; rows: {', '.join(plan.rows)}")
    nodes = [
        node for node in plan.select("export", iteration, arm) if node.label == "export-policy"
    ]
    if not nodes:
        raise SettingsError(f"the row `{arm}` has no model of iteration {iteration}")
    if not nodes[0].folder.done:
        raise StageError(
            f"the model of the row `{arm}` after iteration {iteration} is not exported yet: run "
            f"`megatron-vr export CONFIG --iteration {iteration} --arm {arm}` first"
        )
    return nodes[0]


def card_facts(
    prepared: Prepared, arm: str, iteration: int, repo: str, *, endpoint: str | None = None
) -> CardFacts:
    """What the card of that model says, read from the run's tables.

    `endpoint` is the hub that is asked for the licence of a base that came from it. Raises as
    `push_export`, and CheckpointError where the base's licence cannot be read.
    """
    node = find_export(prepared.plan, arm, iteration)
    row = MAIN_ARM if arm == START else arm
    settings = arms(prepared.settings)[row]
    base = _base(node.inputs["base"], endpoint)
    evaluations = _evaluations(prepared, node, row, iteration)
    folder = format_folder(settings.prompts.format)
    found = {name: installed(name) for name in VERSIONS}
    return CardFacts(
        repo=repo,
        arm=arm,
        about=_about(prepared, arm if iteration else START),
        iteration=iteration,
        settings=settings,
        base=base,
        data=tuple(_questions(prepared, which) for which in ("train", "validation", "test")),
        prompt=read_template(folder / POLICY_FILE, ("question",)).pieces,
        end=read_rules(folder).end,
        tables=tuple(_tables(prepared, evaluations)),
        not_evaluated=tuple(n for n, (e, _) in evaluations.items() if not e.folder.done),
        versions={name: there for name, there in found.items() if there},
        local=frozenset(_local(settings.model_dump(mode="json"))),
    )


def _base(node: Node, endpoint: str | None) -> Base:
    model = node.settings.model
    if model.path is None:
        shape = model.random.model_dump() if model.random else {}
        told = ", ".join(f"{name} {value}" for name, value in shape.items())
        return Base("random", told, {})
    downloaded = node.path / "model"  # there if, and only if, the base came from the hub
    folder = downloaded if downloaded.is_dir() else Path(model.path)
    if not folder.is_dir():
        raise CheckpointError(
            f"the base {folder} is no folder here any more, so its licence cannot be read"
        )
    card = folder / hub.CARD
    metadata: Mapping[str, Any] = {}
    if card.is_file():
        metadata = read_front_matter(card.read_text(encoding="utf-8"), str(card))
    elif folder == downloaded:
        metadata = _metadata(model.path, card, endpoint)
    licence = stated_licence(metadata)
    if folder == downloaded:
        return Base("hub", model.path, licence)
    return Base("folder", folder.resolve().name, licence)


def _metadata(name: str, card: Path, endpoint: str | None) -> Mapping[str, Any]:
    try:
        return hub.model_metadata(name, endpoint=endpoint)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. Or put the base's model card at {card}") from None


def _questions(prepared: Prepared, which: str) -> QuestionSet:
    sources = tuple(_source(source) for source in getattr(prepared.settings.problems, which))
    nodes = [n for n in prepared.plan.nodes if n.label == f"problems-{which}" and n.folder.done]
    counts = nodes[0].folder.summary() if nodes else {}
    return QuestionSet(which, sources, counts.get("questions"), counts.get("with_reference"))


def _source(source: Source) -> str:
    """A source without the folders of this machine."""
    if isinstance(source, FileSource):
        return source.path.name
    if isinstance(source, DatasetSource) and Path(source.name).is_dir():
        return f"{Path(source.name).resolve().name}:{source.split}"
    return describe(source)


def _evaluations(
    prepared: Prepared, model: Node, arm: str, iteration: int
) -> dict[str, tuple[Node, bool]]:
    """Row → its evaluation and whether it is `model`'s, which gets a row of its own between the
    first iteration and the last."""
    rows = prepared.plan.rows
    order = [START, *(name for name in rows if name not in (START, MAIN_ARM)), MAIN_ARM]
    found = {name: (rows[name], rows[name].inputs["model"] is model) for name in order}
    if not any(mine for _, mine in found.values()):
        own = [
            n for n in prepared.plan.nodes if n.stage == "evaluate" and n.inputs["model"] is model
        ]
        own.sort(key=lambda node: node.arm != arm)  # rows may measure a shared model differently
        found[f"{arm}, iteration {iteration}"] = (own[0], True)
    return found


def _tables(
    prepared: Prepared, evaluations: Mapping[str, tuple[Node, bool]]
) -> Iterator[ResultTable]:
    """One table of all questions and one of each band; none before anything was evaluated."""
    done = {name: node for name, (node, _) in evaluations.items() if node.folder.done}
    if not done:
        return
    read: dict[str, Evaluated] = {}
    bands: dict[str, str | None] = {}
    for name, node in done.items():
        read[name] = read_evaluation(Stage(node.label, node.arm, node.iteration, node.folder))
        problems = node.inputs["problems"].folder.read(PROBLEM_SCHEMA, ["id", "band"])
        bands |= {row["id"]: row["band"] for row in problems.to_pylist()}
    metrics = shared_metrics(read)
    for scope in scopes(bands):
        rows = tuple(
            ResultRow(
                name=name,
                about=_about(prepared, name),
                scores=tuple(score(evaluated, metric, scope) for metric in metrics),
                mine=evaluations[name][1],
            )
            for name, evaluated in read.items()
        )
        heads = tuple(METRIC_NAMES.get(metric, metric) for metric in metrics)
        yield ResultTable(scope.name, len(scope.ids), heads, rows)


def _about(prepared: Prepared, row: str) -> str:
    """What a row of the results learns from."""
    if row == START:
        return f"{policy_name(0)}: before any iteration"
    settings = arms(prepared.settings).get(row.partition(",")[0])
    return describe_row(settings) if settings else ""


def _local(tree: Any) -> Iterator[str]:
    """The strings of the settings that name something on this machine's disk."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _local(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _local(value)
    elif isinstance(tree, str) and os.sep in tree and Path(tree).expanduser().exists():
        yield tree
