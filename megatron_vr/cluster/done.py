"""Which jobs have nothing left to do, as the run's folder tells."""

from __future__ import annotations

from megatron_vr.algorithm.benchmarking.of_run import results_of
from megatron_vr.algorithm.benchmarking.suite import chosen_benchmarks
from megatron_vr.algorithm.plan import Plan
from megatron_vr.algorithm.run import RESULTS
from megatron_vr.cluster.jobs import BENCHMARKS
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.config.settings import Settings
from megatron_vr.traces.store import DONE


def done_jobs(plan: Plan, settings: Settings) -> set[str]:
    """Names of the jobs whose stage is done under these very settings."""
    done = {node.name for node in plan.nodes if node.folder.done}
    return done | ({BENCHMARKS} if _has_benchmarks(settings) else set())


def _has_benchmarks(settings: Settings) -> bool:
    out = results_of(settings.run.folder, MAIN_ARM, settings.run.iterations)
    if not (out / RESULTS).exists():
        return False
    wanted = chosen_benchmarks(settings.cluster.benchmarks)
    return all((out / benchmark.name / DONE).is_file() for benchmark in wanted)
