"""What `run` and the stage commands do: prepare here, then work on one or several processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

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
from megatron_vr.errors import SettingsError
from megatron_vr.evaluation.spread import spread
from megatron_vr.evaluation.table import print_results
from megatron_vr.parallel.launch import is_launched, is_launched_by_us, launch
from megatron_vr.parallel.world import World
from megatron_vr.traces.durable import write_durably


def run_once(config: Path, overrides: Sequence[str], start_over: bool, as_json: bool) -> None:
    """One run, its results table and its report."""
    prepared = prepare(load_settings(config, overrides), start_over=start_over)
    if is_launched():
        main = _as_rank(prepared, _after_problems(prepared), start_over)
        if main and not is_launched_by_us():
            _tell(collect_results(prepared), prepared.settings.run.folder, as_json)
        return
    read_problems(prepared, start_over=start_over)
    arguments = ["run", str(config), *overrides, *(["--start-over"] if start_over else [])]
    _work_or_launch(prepared, _after_problems(prepared), arguments, start_over)
    _tell(collect_results(prepared), prepared.settings.run.folder, as_json)


def run_seeds(
    config: Path, overrides: Sequence[str], seeds: Sequence[int], start_over: bool, as_json: bool
) -> None:
    """The run once per seed in `<run.folder>/seed-N`, then mean ± spread of every number."""
    root = load_settings(config, overrides).run.folder
    for seed in seeds:
        own = [*overrides, f"run.seed={seed}", f"run.folder={root / f'seed-{seed}'}"]
        run_once(config, own, start_over, as_json=False)
    results = spread([read_results(root / f"seed-{seed}") for seed in seeds])
    write_durably(root / RESULTS, json.dumps(results, indent=1) + "\n")
    _tell(results, root, as_json)


def run_stage(
    stage: str, config: Path, overrides: Sequence[str], iteration: int, arm: str, start_over: bool
) -> None:
    """The nodes of one stage of one row in one iteration."""
    prepared = prepare(load_settings(config, overrides), start_over=start_over)
    if arm not in prepared.plan.rows:
        rows = ", ".join(prepared.plan.rows)
        raise SettingsError(f"--arm {arm!r} is no row of this run; rows: {rows}")
    nodes = prepared.plan.select(stage, iteration, arm)
    if not nodes:
        raise SettingsError(
            f"the row `{arm}` has no stage `{stage}` in iteration {iteration} "
            f"(run.iterations is {prepared.settings.run.iterations}; `sft` is iteration 0)"
        )
    if is_launched():
        _as_rank(prepared, [*_bases(prepared), *nodes], start_over)
        return
    read_problems(prepared, start_over=start_over)
    nodes = [*_bases(prepared), *nodes]
    options = ["--iteration", str(iteration), "--arm", arm]
    flags = ["--start-over"] if start_over else []
    arguments = [stage, str(config), *overrides, *options, *flags]
    _work_or_launch(prepared, nodes, arguments, start_over)


def _after_problems(prepared: Prepared) -> list[Node]:
    return [node for node in prepared.plan.nodes if node.stage != "problems"]


def _bases(prepared: Prepared) -> list[Node]:
    return [node for node in prepared.plan.nodes if node.stage == "base"]


def _work_or_launch(
    prepared: Prepared, nodes: list[Node], arguments: list[str], start_over: bool
) -> None:
    if all(node.folder.done for node in nodes):
        return
    if prepared.processes == 1:
        execute(nodes, World(0, 1), start_over=start_over)
        return
    code = launch(arguments, prepared.processes)
    if code:
        sys.exit(code)


def _as_rank(prepared: Prepared, nodes: list[Node], start_over: bool) -> bool:
    """Work as one rank of several; whether it is the main one.

    Where torchrun started the ranks, nobody has read the problems yet: the main one does.
    """
    from megatron_vr.parallel.layout import join_world

    join_world(prepared.settings.parallel.timeout_minutes)
    world = World.from_environment()
    if world.is_main and not is_launched_by_us():
        read_problems(prepared, start_over=start_over)
    world.barrier()
    execute(nodes, world, start_over=start_over)
    return world.is_main


def _tell(results: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print the results, and write the page of the run in `folder`."""
    from megatron_vr.report.page import write_report

    if as_json:
        typer.echo(json.dumps(results | {"report": str(write_report(folder))}, indent=1))
        return
    print_results(results)
    typer.echo(f"\nreport: {write_report(folder)}")
