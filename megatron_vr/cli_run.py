"""What `run` and the stage commands do: prepare here, then work on one or several processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import typer

from megatron_vr.algorithm.alone import nodes_of
from megatron_vr.algorithm.one_stage import Asked, hosts_of, prepare_stage
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.run import (
    RESULTS,
    Prepared,
    collect_results,
    execute,
    prepare,
    read_problems,
    read_results,
)
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import ParallelSettings
from megatron_vr.errors import Requeue, StageError
from megatron_vr.evaluation.spread import spread
from megatron_vr.evaluation.table import print_results
from megatron_vr.parallel.blame import blaming_this_host
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.launch import is_launched, is_launched_by_us, launch
from megatron_vr.parallel.world import World
from megatron_vr.rollout.engine import never
from megatron_vr.traces.durable import write_durably

# What a rank does of its world; it asks whether another one was asked to stop.
Work = Callable[[World, Callable[[], bool]], None]


def run_once(config: Path, overrides: Sequence[str], start_over: bool, as_json: bool) -> None:
    """One run, its results table and its report."""
    with stoppable() as interrupt:
        _run_once(config, overrides, start_over, as_json, interrupt)


def run_seeds(
    config: Path, overrides: Sequence[str], seeds: Sequence[int], start_over: bool, as_json: bool
) -> None:
    """The run once per seed in `<run.folder>/seed-N`, then mean ± spread of every number."""
    root = load_settings(config, overrides).run.folder
    with stoppable() as interrupt:
        for seed in seeds:
            own = [*overrides, f"run.seed={seed}", f"run.folder={root / f'seed-{seed}'}"]
            _run_once(config, own, start_over, False, interrupt)
            interrupt.check(f"seed {seed}")
    if is_launched() and not World.from_environment().is_main:
        return
    results = spread([read_results(root / f"seed-{seed}") for seed in seeds])
    write_durably(root / RESULTS, json.dumps(results, indent=1) + "\n")
    _tell(results, root, as_json)


def run_stage(
    stage: str, config: Path, overrides: Sequence[str], iteration: int, arm: str, start_over: bool
) -> None:
    """The nodes of one stage of one row in one iteration."""
    prepared = prepare(load_settings(config, overrides), start_over=start_over)
    nodes = nodes_of(prepared, stage, iteration, arm)
    with stoppable() as interrupt:
        if is_launched():
            _as_rank(prepared, nodes, start_over, interrupt)
            return
        read_problems(prepared, interrupt, start_over=start_over)
        options = ["--iteration", str(iteration), "--arm", arm]
        flags = ["--start-over"] if start_over else []
        arguments = [stage, str(config), *overrides, *options, *flags]
        _work_or_launch(prepared, nodes, arguments, start_over, interrupt)


def run_node(
    config: Path,
    overrides: Sequence[str],
    name: str,
    nodes: int,
    node_rank: int | None,
    meet: str | None,
    processes: int | None,
    servers: Path | None,
) -> None:
    """The node of the plan whose folder within the run's is `name`; see `megatron-vr stage`."""
    settings = load_settings(config, overrides)
    asked = Asked(name, hosts_of(settings, nodes, node_rank, meet), processes, servers)
    stage = prepare_stage(settings, asked)
    with stoppable() as interrupt:
        if is_launched():
            _as_rank(stage.prepared, [stage.node], False, interrupt)
        elif stage.node.stage == "problems":
            read_problems(stage.prepared, interrupt, only=stage.node)
        elif asked.hosts.count > 1 or (stage.processes > 1 and not stage.node.folder.done):
            # Of several hosts the ranks decide together whether the stage is done.
            arguments = ["stage", str(config), name, *overrides]
            code = launch(arguments, stage.processes, interrupt, asked.hosts)
            if code:
                sys.exit(code)
        else:
            with blaming_this_host():
                execute([stage.node], World(0, 1), interrupt)


def push_model(
    config: Path, overrides: Sequence[str], iteration: int, arm: str, repo: str, private: bool
) -> str | None:
    """Upload the exported model of a row with its card; the commit's address, on the main rank."""
    from megatron_vr.algorithm.release import push_export

    if is_launched() and (is_launched_by_us() or not World.from_environment().is_main):
        return None
    prepared = prepare(load_settings(config, overrides))
    return push_export(prepared, arm, iteration, repo, private=private)


@contextmanager
def stoppable() -> Iterator[Interrupt]:
    """Inside, signals that ask to stop are noted."""
    interrupt = Interrupt()
    interrupt.install()
    try:
        yield interrupt
    finally:
        # A rank's agent may send SIGTERM while the rank prints its last message.
        if not is_launched():
            interrupt.restore()


def _run_once(
    config: Path, overrides: Sequence[str], start_over: bool, as_json: bool, interrupt: Interrupt
) -> None:
    prepared = prepare(load_settings(config, overrides), start_over=start_over)
    nodes = _after_problems(prepared)
    if is_launched():
        main = _as_rank(prepared, nodes, start_over, interrupt)
        if main and not is_launched_by_us():
            _tell(collect_results(prepared), prepared.settings.run.folder, as_json)
        return
    read_problems(prepared, interrupt, start_over=start_over)
    arguments = ["run", str(config), *overrides, *(["--start-over"] if start_over else [])]
    _work_or_launch(prepared, nodes, arguments, start_over, interrupt)
    _tell(collect_results(prepared), prepared.settings.run.folder, as_json)


def _after_problems(prepared: Prepared) -> list[Node]:
    return [node for node in prepared.plan.nodes if node.stage != "problems"]


def _work_or_launch(
    prepared: Prepared,
    nodes: list[Node],
    arguments: list[str],
    start_over: bool,
    interrupt: Interrupt,
) -> None:
    """Rollout servers are talked to from here, and need the GPUs: ranks run before and after.

    Also a single rank: this process would hold its GPU's memory as long as it lives.
    """
    alone = prepared.processes == 1 and not any(node.is_served for node in nodes)
    before: list[Node] = []
    while left := [node for node in nodes if not node.folder.done]:
        interrupt.check("the last stage")
        if alone:
            execute(left, World(0, 1), interrupt, start_over=start_over)
            return
        if left[0].is_served:
            execute(left[:1], World(0, 1), interrupt, start_over=start_over)
            continue
        if left == before:
            raise StageError(f"{left[0].path} is not done, although its processes ended well")
        before = left
        code = launch(arguments, prepared.processes, interrupt)
        if code:
            sys.exit(code)


def _as_rank(prepared: Prepared, nodes: list[Node], start_over: bool, interrupt: Interrupt) -> bool:
    """Work on `nodes` as one rank of several; whether it is the main one."""
    work = partial(_read_and_execute, prepared, nodes, start_over, interrupt)
    return as_rank(prepared.settings.parallel, work)


def as_rank(settings: ParallelSettings, work: Work) -> bool:
    """Do `work` as one rank of several; whether it is the main one.

    The other ranks end when one dies or fails. That a run stopped is told once, by the main one.
    """
    from megatron_vr.parallel.heartbeat import Heartbeat
    from megatron_vr.parallel.layout import join_world

    world = World.from_environment()
    try:
        with blaming_this_host():
            join_world(settings.timeout_minutes)
        if world.size == 1:
            with blaming_this_host():
                work(world, never)
            return True
        with Heartbeat(world, settings.dead_after_seconds) as heartbeat:
            try:
                with blaming_this_host():
                    work(world, lambda: heartbeat.peer_stopped)
            except RuntimeError as error:
                heartbeat.explain(error)
                raise
    except Requeue as stopped:
        if world.is_main:
            raise
        raise SystemExit(stopped.exit_code) from stopped
    return world.is_main


def _read_and_execute(
    prepared: Prepared,
    nodes: list[Node],
    start_over: bool,
    interrupt: Interrupt,
    world: World,
    peer_stopped: Callable[[], bool],
) -> None:
    read_in_ranks(prepared, interrupt, world, start_over=start_over)
    execute(
        nodes,
        world,
        interrupt,
        start_over=start_over,
        hand_over=is_launched_by_us(),
        peer_stopped=peer_stopped,
    )


def read_in_ranks(
    prepared: Prepared, interrupt: Interrupt, world: World, *, start_over: bool = False
) -> None:
    """Read the problems where torchrun started the ranks: nobody has done so yet."""
    if world.is_main and not is_launched_by_us():
        read_problems(prepared, interrupt, start_over=start_over)
    world.barrier()


def _tell(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the results, and write the page of the run in `folder`."""
    from megatron_vr.report.page import write_report

    if as_json:
        typer.echo(json.dumps(results | {"report": str(write_report(folder))}, indent=1))
        return
    print_results(results)
    typer.echo(f"\nreport: {write_report(folder)}")
