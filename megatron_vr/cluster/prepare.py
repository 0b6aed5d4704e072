"""What is read where there is a network, before jobs wait for it: problems, base, benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Collection

from megatron_vr.algorithm.benchmarking.suite import chosen_benchmarks
from megatron_vr.algorithm.plan import Plan
from megatron_vr.algorithm.run import Prepared, execute, processes_of, read_problems
from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.jobs import BENCHMARKS
from megatron_vr.config.settings import Settings
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from megatron_vr.problems.benchmarks.kept import keep_rows

PREPARED = ("problems", "base")


def prepare_here(
    plan: Plan, settings: Settings, missing: Collection[str], say: Callable[[str], None]
) -> None:
    """Run the stages `problems` and `base`, and keep the benchmarks' rows where their job is
    `missing`: that reads these, and no hub. Their faults show now, not after a night in a queue;
    the base, which is large, comes last.

    Raises DataError and CheckpointError as these stages do.
    """
    first = [node for node in plan.nodes if node.stage in PREPARED and not node.folder.done]
    with Interrupt() as interrupt:
        if first:
            say("problems and base are made here (cluster.prepare: here)")
            read_problems(Prepared(settings, processes_of(settings), plan), interrupt)
        if BENCHMARKS in missing:
            _keep_benchmarks(settings, say, interrupt)
        execute([node for node in first if node.stage == "base"], World(0, 1), interrupt)


def _keep_benchmarks(settings: Settings, say: Callable[[str], None], interrupt: Interrupt) -> None:
    # As slurm/benchmarks.sh.jinja names it.
    folder = RunFiles.of(settings.run.folder).folder / "benchmarks"
    for benchmark in chosen_benchmarks(settings.cluster.benchmarks):
        interrupt.check("the last benchmark")
        say(f"benchmark {benchmark.name}: {keep_rows(benchmark, folder)} questions")
