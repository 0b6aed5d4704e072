"""How many questions a run has, without making them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.work import Counts
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.problems.benchmarks.load import load_benchmark
from megatron_vr.problems.rows import jsonl_rows, load_split
from megatron_vr.problems.source_settings import (
    BenchmarkSource,
    DatasetSource,
    FileSource,
    ReasoningGymSource,
    Source,
    ToySource,
)
from megatron_vr.problems.sources import describe

# Rows of data sets on the hub.
KNOWN_ROWS: Final[Mapping[str, int]] = {"bespokelabs/Bespoke-Stratos-17k": 16_710}


def count_questions(settings: Settings, assumed: PlanAssumptions) -> Counts:
    """The questions of `settings`: as assumed, stated by the settings, or the rows of a file here.

    Raises SettingsError for data that is not here and whose size is unknown.
    """
    s, train = settings, assumed.train_questions
    if train is None:
        train = _all(s.problems.train, "train_questions")
    references = assumed.references
    if references is None:
        references = sum(_references(source) for source in s.problems.train)
    test = assumed.test_questions
    if test is None:
        test = _all(getattr(s.problems, s.evaluation.problems), "test_questions")
    return Counts(train, min(references, train), test)


def _all(sources: Sequence[Source], key: str) -> int:
    return sum(_count(source, key) for source in sources)


def _count(source: Source, key: str) -> int:
    if isinstance(source, (ToySource, ReasoningGymSource)):
        return source.count
    found = _rows(source)
    if found is None:
        raise SettingsError(
            f"{describe(source)} is not here, and how many questions it has is unknown; say it "
            f"with --assume {key}=N"
        )
    return found if source.limit is None else min(found, source.limit)


def _rows(source: FileSource | DatasetSource | BenchmarkSource) -> int | None:
    """Rows of what is here, or is known; None for the rest."""
    if isinstance(source, BenchmarkSource):
        return load_benchmark(source.name).questions
    if isinstance(source, DatasetSource):
        if Path(source.name).is_dir():
            return len(load_split(source.name, source.config, source.split))
        return KNOWN_ROWS.get(source.name)
    if not source.path.is_file():
        return None
    if source.path.suffix == ".jsonl":
        return sum(1 for _ in jsonl_rows(source.path))
    return _parquet_rows(source.path)


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _references(source: Source) -> int:
    """Problems with a reference: all, where the rows would have to be read to tell."""
    if isinstance(source, ToySource):
        return source.references
    if isinstance(source, (ReasoningGymSource, BenchmarkSource)):
        return 0
    return _count(source, "train_questions")
