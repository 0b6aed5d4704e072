"""Rows of JSONL and Parquet files and of Hugging Face data sets, with their numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.errors import DataError
from megatron_vr.problems.source_settings import DatasetSource, FileSource


@dataclass(frozen=True)
class Row:
    """`number` counts from 1, in lines for JSONL."""

    number: int
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Rows:
    """What a file or data set holds. `unit` is `line` or `row`."""

    name: str
    unit: str
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def require(self, column: str, field: str) -> None:
        """Raise DataError naming the columns present when `column` is not one of them."""
        if not self.rows:
            raise DataError(f"{self.name} is empty; give a file with at least one problem")
        if column not in self.columns:
            present = ", ".join(self.columns) or "none"
            raise DataError(
                f"{self.name} has no column {column!r} for the {field}; present: {present}; "
                f"name the right one with `columns: {{{field}: …}}`"
            )


def read_file(source: FileSource) -> Rows:
    """All rows of the file. Raises DataError for a missing, unreadable or broken file."""
    if not source.path.is_file():
        raise DataError(f"there is no file {source.path}; correct `path`")
    return (
        _read_jsonl(source.path) if source.path.suffix == ".jsonl" else _read_parquet(source.path)
    )


def read_dataset(source: DatasetSource) -> Rows:
    """All rows of the split. Raises DataError when it cannot be loaded."""
    from datasets import load_dataset, load_from_disk

    name = f"{source.name}:{source.split}"
    folder = Path(source.name)
    try:
        if (folder / "dataset_dict.json").is_file():
            data = load_from_disk(source.name)[source.split]
        elif (folder / "state.json").is_file():
            data = load_from_disk(source.name)
        else:
            data = load_dataset(source.name, source.config, split=source.split)
    except Exception as error:  # the library raises whatever its readers raise
        raise DataError(
            f"data set {source.name!r}, split {source.split!r}, cannot be loaded: "
            f"{type(error).__name__}: {error}; check `name`, `config` and `split`"
        ) from error
    rows = [Row(number, values) for number, values in enumerate(data, start=1)]
    return Rows(name, "row", tuple(data.column_names), rows)


def _read_jsonl(path: Path) -> Rows:
    columns: dict[str, None] = {}
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    values = _json_object(line, f"{path}, line {number}")
                    columns.update(dict.fromkeys(values))
                    rows.append(Row(number, values))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it") from None
    return Rows(str(path), "line", tuple(columns), rows)


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error}; correct or remove it") from None
    if not isinstance(values, dict):
        raise DataError(f"{where} holds {type(values).__name__}, not an object {{…}}; correct it")
    return values


def _read_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None
    rows = [Row(number, values) for number, values in enumerate(table.to_pylist(), start=1)]
    return Rows(str(path), "row", tuple(table.column_names), rows)
