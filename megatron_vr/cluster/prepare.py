"""What is read where there is a network, before jobs wait for it: problems, base, benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Collection

from megatron_vr.algorithm.benchmarking.suite import chosen_benchmarks
from megatron_vr.algorithm.plan import Plan
from megatron_vr.algorithm.run import Prepared, execute, processes_of, read_problems
from megatron_vr.cluster.jobs import BENCHMARKS
from megatron_vr.config.settings import Settings
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from megatron_vr.problems.benchmarks.problems import benchmark_problems

PREPARED = ("problems", "base")


def prepare_here(
    plan: Plan, settings: Settings, missing: Collection[str], say: Callable[[str], None]
) -> None:
    """Run the stages `problems` and `base`, and read the benchmarks where their job is `missing`,
    which leaves them in the hub's cache. Their faults show now, not after a night in a queue.

    Raises DataError and CheckpointError as these stages do.
    """
    first = [node for node in plan.nodes if node.stage in PREPARED and not node.folder.done]
    if first:
        say("problems and base are made here (cluster.prepare: here)")
        with Interrupt() as interrupt:
            read_problems(Prepared(settings, processes_of(settings), plan), interrupt)
            bases = [node for node in first if node.stage == "base"]
            execute(bases, World(0, 1), interrupt)
    if BENCHMARKS in missing:
        for benchmark in chosen_benchmarks(settings.cluster.benchmarks):
            say(f"benchmark {benchmark.name}: {len(benchmark_problems(benchmark))} questions")
