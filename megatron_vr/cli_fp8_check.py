"""What `train CONFIG --fp8-check STEPS` does, and `sft` and `posterior`: here, or in ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import typer

from megatron_vr.algorithm.alone import nodes_of
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.fp8_check import (
    PICTURE,
    RESULT,
    Fp8Asked,
    check_fp8_asked,
    fp8_check,
    read_check,
)
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Talk
from megatron_vr.algorithm.run import Prepared, execute, prepare, read_problems
from megatron_vr.algorithm.runner import check_inputs
from megatron_vr.cli_run import as_rank, read_in_ranks, stoppable
from megatron_vr.config.load import load_settings
from megatron_vr.errors import SettingsError, StageError
from megatron_vr.parallel.blame import blaming_this_host
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.launch import is_launched, is_launched_by_us, launch
from megatron_vr.parallel.world import World
from megatron_vr.rollout.engine import never

LARGEST_GAP = 0.005


def asked_for(steps: int | None, gap: float | None, start_over: bool) -> Fp8Asked:
    """The options of the command. Raises SettingsError for those that do not go together."""
    if steps is None:
        raise SettingsError("--fp8-gap says how to compare; give --fp8-check STEPS too")
    if start_over:
        raise SettingsError("--start-over would delete the training; leave it out of --fp8-check")
    return Fp8Asked(steps, LARGEST_GAP if gap is None else gap)


@dataclass(frozen=True)
class _Check:
    """The check of one training, and what the command line said of it."""

    prepared: Prepared
    before: list[Node]
    node: Node
    asked: Fp8Asked


def run_fp8_check(
    stage: str,
    config: Path,
    overrides: Sequence[str],
    iteration: int,
    arm: str,
    asked: Fp8Asked,
) -> None:
    """Check the training of one row in one iteration, and tell what was found.

    Raises StageError where the two halves are too far apart.
    """
    prepared = prepare(load_settings(config, overrides))
    *before, node = nodes_of(prepared, stage, iteration, arm)
    check_fp8_asked(node)
    check = _Check(prepared, before, node, asked)
    with stoppable() as interrupt:
        if is_launched():
            main = as_rank(prepared.settings.parallel, partial(_in_ranks, check, interrupt))
            if main and not is_launched_by_us():
                _tell(node)
            return
        read_problems(prepared, interrupt)
        if prepared.processes == 1:
            with blaming_this_host():
                _work(check, interrupt, World(0, 1), never)
        else:
            options = ["--iteration", str(iteration), "--arm", arm]
            options += ["--fp8-check", str(asked.steps), "--fp8-gap", repr(asked.gap)]
            arguments = [stage, str(config), *overrides, *options]
            code = launch(arguments, prepared.processes, interrupt)
            if code:
                sys.exit(code)
        _tell(node)


def _in_ranks(
    check: _Check, interrupt: Interrupt, world: World, peer_stopped: Callable[[], bool]
) -> None:
    read_in_ranks(check.prepared, interrupt, world)
    _work(check, interrupt, world, peer_stopped)


def _work(
    check: _Check, interrupt: Interrupt, world: World, peer_stopped: Callable[[], bool]
) -> None:
    # The base may not be there yet; what else the training reads must be.
    execute(check.before, world, interrupt, peer_stopped=peer_stopped)
    check_inputs(check.node)
    fp8_check(check.node, Context(world, Talk(world.is_main), interrupt, peer_stopped), check.asked)


def _tell(node: Node) -> None:
    """Print the check, and raise StageError where FP8 is not to be trained in."""
    from megatron_vr.report.fp8_check import print_check

    checked = read_check(node.path)
    print_check(checked)
    typer.echo(f"{node.path / RESULT}\n{node.path / PICTURE}")
    if checked.fault is not None:
        raise StageError(checked.fault)
