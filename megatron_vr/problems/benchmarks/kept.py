"""A benchmark's rows, kept as a file for hosts without a network."""

from __future__ import annotations

import os
from pathlib import Path

from megatron_vr.errors import DataError
from megatron_vr.problems.benchmarks.benchmark import Benchmark
from megatron_vr.problems.benchmarks.problems import benchmark_digest, benchmark_problems
from megatron_vr.problems.benchmarks.questions import columns_of, passes
from megatron_vr.problems.benchmarks.tables import local_files, tables
from megatron_vr.traces.durable import sync_file, sync_folder

# In the file's own metadata: what the benchmark said when its rows were read.
_MADE_FOR = b"megatron-vr-benchmark"


def keep_rows(benchmark: Benchmark, folder: Path) -> int:
    """Write the rows that `benchmark` reads from a network to `folder`/NAME.parquet, which
    `benchmark_problems` takes as `data`; the number of problems in them.

    Rows kept before are left as they are, unless the benchmark now says otherwise. Nothing is
    written of rows that are files here already. Raises DataError as `benchmark_problems` does.
    """
    file = folder / f"{benchmark.name}.parquet"
    if local_files(benchmark, None):
        file.unlink(missing_ok=True)  # of another benchmark that had this name
        return len(benchmark_problems(benchmark))
    if _made_for(file) == benchmark_digest(benchmark).encode():
        return len(benchmark_problems(benchmark, data=file))
    count = len(benchmark_problems(benchmark))
    _write(benchmark, file)
    return count


def _made_for(file: Path) -> bytes | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not file.exists():
        return None
    try:
        return (pq.read_schema(file).metadata or {}).get(_MADE_FOR)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}; delete it") from error


def _write(benchmark: Benchmark, file: Path) -> None:
    """Parquet, since rows from the hub are Arrow's: every value stays what it was."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = columns_of(benchmark)
    needed = [column for column, always in columns.items() if always]
    rows = [
        row.values
        for table in tables(benchmark, None, list(columns), needed)
        for row in table.rows
        if passes(benchmark, row.values)
    ]
    made_for = {_MADE_FOR: benchmark_digest(benchmark).encode()}
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(made_for), aside)
    sync_file(aside)
    os.replace(aside, file)
    sync_folder(file.parent)
