"""The stages of a run that are one process's work, by their commands: export and weigh.

They compute nothing with ranks, so neither the trainings' layout nor what models need has to fit
the host, which may be a login node.
"""

from __future__ import annotations

from megatron_vr.algorithm.check_model import check_model
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.algorithm.plan import Node, make_plan
from megatron_vr.algorithm.run import Prepared, execute, read_problems
from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World

ALONE = ("weigh", "export")


def prepare_alone(settings: Settings, *, start_over: bool = False) -> Prepared:
    """Check what does not depend on this host; see `prepare`, which raises the same."""
    for name, row in arms(settings).items():
        where = "" if name == MAIN_ARM else f"comparisons.{name}: "
        check_settings(row, layout_of(row).model_ranks, where, on_gpu=None, installed_here=False)
    check_model(settings, layout_of(settings).model_ranks)
    plan = make_plan(settings, digests(settings))
    if not start_over:
        plan.check()
    return Prepared(settings, 1, plan)


def run_alone(
    stage: str, settings: Settings, iteration: int, arm: str, *, start_over: bool = False
) -> None:
    """The nodes of one stage of `ALONE`, of one row in one iteration, on this process.

    Raises SettingsError for a row or stage that the run has not, Requeue when asked to stop.
    """
    prepared = prepare_alone(settings, start_over=start_over)
    nodes = nodes_of(prepared, stage, iteration, arm)
    with Interrupt() as interrupt:
        read_problems(prepared, interrupt, start_over=start_over)
        execute(nodes, World(0, 1), interrupt, start_over=start_over)


def nodes_of(prepared: Prepared, stage: str, iteration: int, arm: str) -> list[Node]:
    """The base, and the nodes of `stage` that the row `arm` has in `iteration`."""
    plan = prepared.plan
    if arm not in plan.rows:
        raise SettingsError(f"--arm {arm!r} is no row of this run; rows: {', '.join(plan.rows)}")
    nodes = plan.select(stage, iteration, arm)
    if not nodes:
        raise SettingsError(
            f"the row `{arm}` has no stage `{stage}` in iteration {iteration} "
            f"(run.iterations is {prepared.settings.run.iterations}; `sft` is iteration 0)"
        )
    return [*(node for node in plan.nodes if node.stage == "base"), *nodes]
