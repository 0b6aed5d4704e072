"""Benchmarks of a model: one folder of graded outputs for each, then the numbers of all."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.algorithm.benchmarking.outcomes import STAGE, check_others
from megatron_vr.algorithm.benchmarking.subject import Subject
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.digests import format_digest
from megatron_vr.algorithm.graded_outputs import GradedOutputs
from megatron_vr.algorithm.progress import Talk, Whole
from megatron_vr.algorithm.sampling_parts import missing_parts
from megatron_vr.algorithm.stages.sampling import sampling_of
from megatron_vr.config.engine_settings import precision_of
from megatron_vr.config.evaluate_settings import EvaluateSettings
from megatron_vr.errors import DataError, SettingsError
from megatron_vr.evaluation.suite import metric_of
from megatron_vr.grading.grade import Grader
from megatron_vr.problems.benchmarks.benchmark import Benchmark
from megatron_vr.problems.benchmarks.load import load_benchmark
from megatron_vr.problems.benchmarks.names import benchmark_names
from megatron_vr.problems.benchmarks.problems import benchmark_digest, benchmark_problems
from megatron_vr.problems.problem import Problem
from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.rollout.engine import Engine
from megatron_vr.rollout.open import open_engine
from megatron_vr.traces.fingerprint import make_fingerprint
from megatron_vr.traces.store import StageFolder, count_parts


@dataclass(frozen=True)
class Bench:
    """A benchmark, its questions (none once it is done), and the folder of outputs to them."""

    benchmark: Benchmark
    problems: Sequence[Problem]
    samples: int
    folder: StageFolder

    def about(self) -> dict[str, Any]:
        """What stays beside the outputs, so that they can be read without the questions."""
        return {
            "benchmark": self.benchmark.name,
            "title": self.benchmark.title,
            "group": self.benchmark.group,
            "metric": self.benchmark.metric,
            "published": self.benchmark.questions,
            "bands": {problem.id: problem.band for problem in self.problems},
            "sources": {problem.id: problem.source for problem in self.problems},
        }


def chosen_benchmarks(words: Sequence[str]) -> list[Benchmark]:
    """Benchmarks by name, by group (`math`, `general/code`), `all`, or by path; each once.

    Raises SettingsError for a name that is none of these, and for two of one name.
    """
    shipped = {name: load_benchmark(name) for name in benchmark_names()}
    found: dict[str, Benchmark] = {}
    for word in words:
        of_group = [made for made in shipped.values() if word in ("all", made.group)]
        for benchmark in of_group or [load_benchmark(word)]:
            if found.setdefault(benchmark.name, benchmark) != benchmark:
                raise SettingsError(
                    f"two benchmarks are called {benchmark.name!r}; rename one of the files"
                )
    if not found:
        raise SettingsError(
            f"no benchmark is named; give --benchmarks {','.join(list(shipped)[:2])} or `all`"
        )
    return list(found.values())


def plan_benches(
    benchmarks: Sequence[Benchmark],
    subject: Subject,
    settings: EvaluateSettings,
    out: Path,
    talk: Talk,
    *,
    start_over: bool,
) -> list[Bench]:
    """Read the questions of those that are not done; nothing is written.

    Raises DataError for rows that cannot be read or two questions with one id, StageError where
    anything under `out` was made of another model or, unless it will `start_over`, asked otherwise.
    """
    how = {"model": dict(subject.identity), "how": how_asked(subject, settings)}
    check_others(out, how, {benchmark.name for benchmark in benchmarks} if start_over else set())
    found = []
    owners: dict[str, str] = {}
    for benchmark in benchmarks:
        rows = _rows_of(benchmark, settings.data)
        limit, seed = settings.limit, settings.seed
        digest = benchmark_digest(benchmark, data=rows, limit=limit, seed=seed)
        samples = settings.samples or benchmark.samples
        metric_of(benchmark.name, benchmark.metric, samples)  # there must be enough for its k
        told = {**how, "benchmark": digest, "samples": samples}
        folder = StageFolder(out / benchmark.name, make_fingerprint(STAGE, told, {}))
        if not start_over:
            folder.check()
        problems: Sequence[Problem] = ()
        if not folder.done:
            with talk.bar(f"{benchmark.title}: reading", None, "rows") as advance:
                problems = benchmark_problems(
                    benchmark, data=rows, limit=limit, seed=seed, progress=advance
                )
            _check_ids(problems, benchmark.name, owners)
        found.append(Bench(benchmark, problems, samples, folder))
    return found


def _check_ids(problems: Sequence[Problem], name: str, owners: dict[str, str]) -> None:
    for problem in problems:
        if owners.setdefault(problem.id, name) != name:
            raise DataError(
                f"question {problem.id!r} is in {owners[problem.id]} and in {name}; give their "
                "questions ids of their own"
            )


def run_benches(
    benches: Sequence[Bench],
    subject: Subject,
    settings: EvaluateSettings,
    out: Path,
    context: Context,
    *,
    start_over: bool,
) -> None:
    """Sample and grade what is missing. Raises Requeue when asked to stop; what is finished stays.

    The parts of all benchmarks are one stream, so that no server waits for the last answers of one.
    Raises StageError while another process works in one of the folders.
    """
    left = []
    for bench in benches:
        if bench.folder.done:
            context.talk.line(f"{bench.benchmark.title}: done before")
        else:
            left.append(bench)
    if not left:
        return
    prompts = load_format(settings.format, load_tokenizer(subject.folder), posterior=None)
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for bench in left:
            held.enter_context(bench.folder.lock())
        kinds = {problem.kind for bench in left for problem in bench.problems}
        grader = held.enter_context(Grader(settings.grading, kinds, context.stopping))
        engine = held.enter_context(_engine(subject, settings, context, out))
        for bench in left:  # after all that can fail at the start
            bench.folder.open(start_over=start_over)
        outputs = [
            _outputs(bench, settings, prompts, grader, engine.context_length) for bench in left
        ]
        parts = [
            part
            for bench, asked in zip(left, outputs, strict=True)
            for part in missing_parts(bench.folder, asked)
        ]
        made = sum(part.generations for part in parts)
        total = sum(asked.total * asked.per_item for asked in outputs)
        whole = Whole(out, total, total - made)
        context.sample(parts, engine, f"{len(left)} benchmarks", "outputs", whole)
        for bench, asked in zip(left, outputs, strict=True):
            count = count_parts(asked.total, asked.part_size)
            if not bench.folder.missing(count):
                bench.folder.finish(count, bench.about())
    context.check("the generations at hand")


def _outputs(
    bench: Bench,
    settings: EvaluateSettings,
    prompts: PromptFormat,
    grader: Grader,
    context_length: int,
) -> GradedOutputs:
    return GradedOutputs(
        bench.problems,
        prompts,
        grader,
        sampling_of(settings.sampling, prompts),
        samples=bench.samples,
        greedy=settings.greedy,
        seed=settings.seed,
        largest_part=settings.engine.part_size,
        read=settings.read,
        context_length=context_length,
    )


def _engine(subject: Subject, settings: EvaluateSettings, context: Context, out: Path) -> Engine:
    return open_engine(
        subject.engine,
        subject.folder,
        logs=out / "servers",
        gap=settings.largest_engine_gap,
        say=context.talk.line,
        watch=lambda: context.check("the last part"),
        as_served=subject.is_served,
    )


def how_asked(subject: Subject, settings: EvaluateSettings) -> dict[str, Any]:
    """What outputs and verdicts of all benchmarks depend on; not how fast they are made."""
    engine, grading = subject.engine, settings.grading
    launch = engine.servers.launch
    return {
        "seed": settings.seed,
        "format": settings.format,
        "format_content": format_digest(settings.format),
        "read": settings.read,
        "greedy": settings.greedy,
        "sampling": settings.sampling.model_dump(mode="json"),
        "engine": engine.kind,
        "part_size": engine.part_size,
        "context_length": launch.context_length if launch is not None else None,
        **precision_of(engine),
        "deadline_seconds": grading.deadline_seconds,
        "math": grading.math.model_dump(mode="json"),
        "code": grading.code.model_dump(mode="json"),
    }


def _rows_of(benchmark: Benchmark, data: Path | None) -> Path | None:
    """Where under `data` the rows of a benchmark are; None: where it says itself.

    Raises SettingsError where `data` has none, and the benchmark names no files of this host.
    """
    if data is None:
        return None
    name = benchmark.name
    places = [data / f"{name}.jsonl", data / f"{name}.parquet", data / name]
    found = [place for place in places if place.exists()]
    own = [file for file in benchmark.data.files if "://" not in file]
    if not found and not own:
        raise SettingsError(
            f"data is {data}, which has none of {', '.join(place.name for place in places)}; put "
            f"the rows of {name} there, or leave `data` out to read them from the hub"
        )
    return found[0] if found else None
