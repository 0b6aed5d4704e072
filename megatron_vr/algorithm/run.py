"""A run from settings to results: prepare, execute the plan, collect the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_vr.algorithm.check_model import check_model
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.plan import Node, Plan, make_plan
from megatron_vr.algorithm.progress import Talk
from megatron_vr.algorithm.runner import run_nodes
from megatron_vr.algorithm.stages.problems import PREFIX
from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.settings import Settings
from megatron_vr.errors import DataError, SettingsError
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.launch import (
    check_launch,
    default_processes,
    has_gpu,
    is_launched,
)
from megatron_vr.parallel.world import World
from megatron_vr.problems.problem import PROBLEM_SCHEMA
from megatron_vr.rollout.engine import never
from megatron_vr.traces.durable import write_durably

RESULTS = "results.json"


@dataclass(frozen=True)
class Prepared:
    """Settings that were checked, the processes they need, and the plan."""

    settings: Settings
    processes: int
    plan: Plan


def prepare(settings: Settings, *, start_over: bool = False) -> Prepared:
    """Check everything that can be checked before a process is started or a model loaded.

    Raises SettingsError, DataError (the problems are read here), or StageError where the run's
    folder was made under other settings.
    """
    rows = arms(settings)
    check_launch(any(starts_servers(row) for row in rows.values()))
    processes = processes_of(settings)
    for name, row in rows.items():
        where = "" if name == MAIN_ARM else f"comparisons.{name}: "
        check_settings(row, processes, where, on_gpu=has_gpu())
    check_model(settings, processes)
    plan = make_plan(settings, digests(settings))
    if not start_over:
        plan.check()
    return Prepared(settings, processes, plan)


def processes_of(settings: Settings) -> int:
    """How many processes work on the run, on all hosts together.

    In a rank the size of its world, else `parallel.processes` with `auto` made a number. Raises
    SettingsError where the two differ.
    """
    asked = settings.parallel.processes
    if is_launched():
        return check_processes(settings, World.from_environment().size, "WORLD_SIZE is")
    return default_processes() if asked == "auto" else asked


def check_processes(settings: Settings, started: int, told: str) -> int:
    """`started`; raises SettingsError where `parallel.processes` is another number.

    `told` leads to the number of processes that were started.
    """
    asked = settings.parallel.processes
    if asked not in ("auto", started):
        raise SettingsError(
            f"parallel.processes is {asked}, but {told} {started}; set parallel.processes: auto, "
            "or start as many processes"
        )
    return started


def starts_servers(settings: Settings) -> bool:
    """Whether a stage of `settings` starts rollout servers of its own."""
    return settings.engine.kind != "embedded" and settings.engine.servers.launch is not None


def read_problems(
    prepared: Prepared,
    interrupt: Interrupt,
    *,
    start_over: bool = False,
    only: Node | None = None,
) -> None:
    """Run the `problems` stages here and save the settings: the data's faults show at once.

    With `only`, the others are as they are: those that are done are compared with it.
    """
    alone = Context(World(0, 1), Talk(speaks=True), interrupt)
    folder = prepared.settings.run.folder
    nodes = [node for node in prepared.plan.nodes if node.stage == "problems"]
    run_nodes(nodes if only is None else [only], alone, start_over=start_over)
    _check_held_out([node for node in nodes if node.folder.done])
    content = prepared.settings.model_dump(mode="json")
    write_durably(folder / "settings.yaml", yaml.safe_dump(content, sort_keys=False))


def _check_held_out(nodes: list[Node]) -> None:
    """Raise DataError where two sets of problems share a question."""
    seen: dict[str, str] = {}
    for node in nodes:
        which = node.label.removeprefix(PREFIX)
        questions = node.folder.read(PROBLEM_SCHEMA, ["question"]).column("question").to_pylist()
        shared = [question for question in questions if seen.get(question, which) != which]
        if shared:
            raise DataError(
                f"problems.{which} shares {len(shared)} questions with "
                f"problems.{seen[shared[0]]}, the first being {shared[0][:80]!r}: accuracy on "
                "learned questions means nothing; take them out of one of the two"
            )
        seen |= dict.fromkeys(questions, which)


def execute(
    nodes: list[Node],
    world: World,
    interrupt: Interrupt,
    *,
    start_over: bool = False,
    hand_over: bool = False,
    peer_stopped: Callable[[], bool] = never,
) -> None:
    """Run `nodes` on this process, one of `world`; see `run_nodes` and `Context`. Raises Requeue
    when asked to stop."""
    context = Context(world, Talk(world.is_main), interrupt, peer_stopped)
    run_nodes(nodes, context, start_over=start_over, hand_over=hand_over)


def collect_results(prepared: Prepared) -> dict[str, Any]:
    """`{"rows": {row: {"accuracy", "greedy", "pass@k", "bands", …}}}`, kept as results.json."""
    rows = {name: node.folder.summary() for name, node in prepared.plan.rows.items()}
    for row in rows.values():
        row.pop("seconds", None)
    ordered = {"start": rows.pop("start")}
    main = rows.pop(MAIN_ARM)
    results = {
        "seed": prepared.settings.run.seed,
        "iterations": prepared.settings.run.iterations,
        "rows": ordered | rows | {MAIN_ARM: main},
    }
    path = prepared.settings.run.folder / RESULTS
    write_durably(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    return results


def read_results(folder: Path) -> dict[str, Any]:
    """The results.json of the run in `folder`."""
    content: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    return content
