"""What `evaluate MODEL --benchmarks` does, from the words of the command to the files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from megatron_vr.algorithm.benchmarking.comparing import compare_folders
from megatron_vr.algorithm.benchmarking.of_run import model_of_run
from megatron_vr.algorithm.benchmarking.outcomes import read_outcomes
from megatron_vr.algorithm.benchmarking.subject import Subject, find_subject
from megatron_vr.algorithm.benchmarking.suite import (
    chosen_benchmarks,
    how_asked,
    plan_benches,
    run_benches,
)
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.progress import Talk
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.config.evaluate_settings import EvaluateSettings
from megatron_vr.config.load import SETTINGS_FILES, load_as
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.evaluation.suite import summarise_suite
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from megatron_vr.report.benchmarks.terminal import print_suite
from megatron_vr.report.benchmarks.written import write_suite

ROOT = Path("evaluations")
# Settings of an evaluation that a run has not.
OWN = EvaluateSettings.model_fields.keys() - Settings.model_fields.keys()


@dataclass(frozen=True)
class Asked:
    """The words of the command; see its help."""

    target: str
    words: tuple[str, ...]
    out: Path | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()
    against: Path | None = None
    base: Path | None = None
    tokenizer: Path | None = None
    iteration: int | None = None
    arm: str | None = None
    start_over: bool = False


def evaluate_model(asked: Asked, *, quiet: bool = False) -> dict[str, Any]:
    """Outputs, verdicts, numbers, files; `quiet` prints no table. Returns the numbers.

    Raises Requeue when asked to stop, and what its parts raise.
    """
    target, settings, out = _what_and_how(asked)
    benchmarks = chosen_benchmarks(asked.words)
    if asked.against is not None:
        read_outcomes(asked.against)  # its faults show before anything is sampled
    over = asked.start_over
    with Interrupt() as interrupt:
        context = Context(World(0, 1), Talk(True), interrupt)
        subject = find_subject(target, out, settings.engine, asked.base, asked.tokenizer)
        benches = plan_benches(benchmarks, subject, settings, out, context.talk, start_over=over)
        run_benches(benches, subject, settings, out, context, start_over=over)
    return _told(subject, settings, out, asked, quiet)


def _what_and_how(asked: Asked) -> tuple[str, EvaluateSettings, Path]:
    if asked.target.endswith(SETTINGS_FILES):
        return _of_run(asked)
    if asked.iteration is not None or asked.arm is not None:
        raise SettingsError(
            f"--iteration and --arm choose a model of a run; {asked.target} is a model itself"
        )
    settings = load_as(EvaluateSettings, asked.config, asked.overrides)
    return asked.target, settings, asked.out or ROOT / _as_name(asked.target)


def _of_run(asked: Asked) -> tuple[str, EvaluateSettings, Path]:
    """The run's model, asked as the run asks; overrides may be of the run or of the evaluation."""
    if asked.config is not None or asked.base is not None or asked.tokenizer is not None:
        raise SettingsError(
            f"{asked.target} says which model and how; leave --config, --base and --tokenizer out, "
            "and give settings as overrides"
        )
    own = [word for word in asked.overrides if _is_own(word)]
    of_run = [word for word in asked.overrides if word not in own]
    iteration = 1 if asked.iteration is None else asked.iteration
    arm = asked.arm or MAIN_ARM
    folder, settings, out = model_of_run(Path(asked.target), of_run, iteration, arm)
    settings = load_as(EvaluateSettings, None, own, base=settings)
    return str(folder), settings, asked.out or out


def _is_own(word: str) -> bool:
    """Whether an override is of the evaluation. `data` is a folder there, and a section of a run's
    settings."""
    key, _, value = word.partition("=")
    if key == "data":
        return not value.lstrip().startswith("{")
    return key.split(".")[0] in OWN


def _told(
    subject: Subject, settings: EvaluateSettings, out: Path, asked: Asked, quiet: bool
) -> dict[str, Any]:
    suite = summarise_suite(subject.name, read_outcomes(out), settings.seed)
    suite["identity"] = dict(subject.identity)
    suite["how"] = how_asked(subject, settings)
    written = write_suite(out, suite)
    if not quiet:
        print_suite(suite)
        typer.echo("\n".join(str(path) for path in written))
    if asked.against is None:
        return suite
    compared = compare_folders(out, asked.against, None, settings.seed, quiet=quiet)
    return {**suite, "comparison": compared}


def _as_name(target: str) -> str:
    """A folder's name for a model: its last words, without what file systems dislike."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", target.rstrip("/")).strip("-.")[-80:]
