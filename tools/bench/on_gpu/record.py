"""The JSON of a benchmark, whole on the disk after every row."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

REHEARSAL = "a rehearsal on a CPU with tiny shapes: nothing here was measured on a GPU"
OUT_OF_TIME = "not run: out of time"


class Record:
    """What was measured so far: `parts` → `cases` → `rows`.

    A case has a `status`: done, running, failed, cut off, not run; `why`, one line, where it is
    not done; and `log`, the last lines that its process printed, where it failed or was cut off.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self._file = file
        self.content: dict[str, Any] = {**about, "complete": False, "parts": {}, "goals": []}

    def case(self, part: str, case: str) -> dict[str, Any]:
        """The entry of a case, made when first asked for."""
        cases: dict[str, Any] = self.content["parts"].setdefault(part, {"cases": {}})["cases"]
        entry: dict[str, Any] = cases.setdefault(
            case, {"status": "not run", "why": OUT_OF_TIME, "rows": {}}
        )
        return entry

    def set(self, part: str, case: str, status: str, why: str = "") -> None:
        """Note what became of a case."""
        self.case(part, case).update(status=status, why=why)
        self.write()

    def row(self, part: str, case: str, name: str, values: Mapping[str, Any]) -> None:
        """Note what was measured in a case."""
        self.case(part, case)["rows"][name] = dict(values)
        self.write()

    def drop(self, part: str, case: str, smaller: int) -> None:
        """Forget the rows of a case that is measured again with fewer layers than `smaller` says:
        half of them would be of one depth and half of another."""
        rows = self.case(part, case)["rows"]
        for name in [name for name, row in rows.items() if row.get("smaller", 0) == smaller]:
            del rows[name]

    def write(self) -> None:
        """Write it all; a reader sees the old file or the new one."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=self._file.parent, prefix=f".{self._file.name}.")
        with os.fdopen(number, "w", encoding="utf-8") as stream:
            json.dump(_finite(self.content), stream, indent=1, ensure_ascii=False, allow_nan=False)
            stream.write("\n")
        os.chmod(name, 0o644)
        os.replace(name, self._file)


def smaller_row(name: str, smaller: int) -> str:
    """The name of a row with fewer layers beside that with more; `smaller` times a quarter less."""
    return f"{name}, smaller {smaller}"


def _finite(value: Any) -> Any:
    """`value` with the numbers that JSON lacks as text, so that any reader takes the file."""
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
