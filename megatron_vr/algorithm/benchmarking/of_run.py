"""A run's own model on benchmarks, asked and judged as the run does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_vr.algorithm.context import model_folder, title
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.config.evaluate_settings import BenchmarkSampling, EvaluateSettings
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError, StageError


def model_of_run(
    config: Path, overrides: Sequence[str], iteration: int, arm: str
) -> tuple[Path, EvaluateSettings, Path]:
    """The exported policy of the row `arm` after `iteration` (0: its start), the settings to
    evaluate it with, and the folder for its results.

    Raises SettingsError for a row or iteration that the run has not, StageError where the model is
    not exported yet.
    """
    settings = load_settings(config, overrides)
    plan = make_plan(settings, digests(settings))
    if arm not in plan.rows:
        raise SettingsError(f"--arm {arm!r} is no row of this run; rows: {', '.join(plan.rows)}")
    exports = plan.select("export", iteration, arm)
    policies = [node for node in exports if node.label == "export-policy"]
    if not policies:
        raise SettingsError(
            f"the row `{arm}` has no policy of iteration {iteration}; "
            f"run.iterations is {settings.run.iterations}, and 0 is the start"
        )
    node = policies[0]
    if not node.folder.done:
        raise StageError(
            f"{title(node)} is not done: run `megatron-vr run {config}` first, or "
            f"`megatron-vr export {config} --iteration {iteration} --arm {arm}`"
        )
    out = results_of(settings.run.folder, arm, iteration)
    return model_folder(node), _as_the_run(node.settings), out


def results_of(run: Path, arm: str, iteration: int) -> Path:
    """Where the benchmarks of a policy of the run in `run` lie."""
    return run / "evaluations" / f"{arm}-{iteration}"


def _as_the_run(settings: Settings) -> EvaluateSettings:
    evaluation = settings.evaluation
    return EvaluateSettings(
        seed=settings.run.seed,
        format=settings.prompts.format,
        sampling=BenchmarkSampling(
            temperature=evaluation.temperature,
            top_p=evaluation.top_p,
            max_new_tokens=evaluation.max_new_tokens,
        ),
        engine=settings.engine,
        grading=settings.grading,
        largest_engine_gap=settings.scoring.largest_engine_gap,
    )
