"""What lies in a run's folder: its settings, and its stages with who was made from whom.

Stages are found by path and joined by the digests in their fingerprints, so nothing is recomputed
and a folder is readable on a machine that has neither the problems nor the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from megatron_vr.config.comparisons import MAIN_ARM, arms
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import DataError
from megatron_vr.traces.fingerprint import Fingerprint
from megatron_vr.traces.store import DONE, FINGERPRINT, StageFolder
from megatron_vr.training.metrics import METRICS_FILE

SETTINGS = "settings.yaml"
RESULTS = "results.json"


@dataclass(frozen=True)
class Stage:
    """One stage's folder as it lies on the disk."""

    label: str
    arm: str
    iteration: int
    folder: StageFolder

    @property
    def path(self) -> Path:
        """The folder."""
        return self.folder.path

    @property
    def done(self) -> bool:
        """Whether the stage was finished."""
        return (self.path / DONE).exists()

    @property
    def parts(self) -> list[int]:
        """Indices of the table parts that are there, finished or not."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.path.glob("part-*.parquet"))

    @property
    def inputs(self) -> Mapping[str, str]:
        """Input name → digest of the stage it was made from."""
        return dict(self.folder.fingerprint.content["inputs"])

    def summary(self) -> dict[str, Any]:
        """The numbers its stage left; empty before it is done."""
        return self.folder.summary() if self.done else {}

    def tables(self, schema: pa.Schema, columns: list[str]) -> Iterator[pa.Table]:
        """The finished parts one by one, so that texts of a large run need not fit in memory."""
        kept = pa.schema([schema.field(name) for name in columns])
        for index in self.parts:
            yield self.folder.read_part(index, kept)

    def rows(self, schema: pa.Schema, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of all finished parts, in order."""
        for table in self.tables(schema, columns):
            yield from table.to_pylist()

    def metrics(self) -> list[dict[str, float | None]]:
        """Lines of the training's metrics, but for one that is still being written.

        None is a value that is not known; runs of older versions lack some names.
        """
        file = self.path / METRICS_FILE
        if not file.exists():
            return []
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        return [dict(json.loads(line)) for line in lines]


@dataclass(frozen=True)
class RunFolder:
    """A run, finished or not. `stages` are by the digest of their fingerprint."""

    path: Path
    settings: Settings
    arms: Mapping[str, Settings]
    stages: Mapping[str, Stage]

    @property
    def rows(self) -> list[str]:
        """The rows of the results table: the start, the comparisons, the run itself last."""
        return ["start", *(arm for arm in self.arms if arm != MAIN_ARM), MAIN_ARM]

    @property
    def iterations(self) -> range:
        """t = 1 … T."""
        return range(1, self.settings.run.iterations + 1)

    def found(self, label: str, arm: str, iteration: int) -> Stage | None:
        """The stage of this label that the row `arm` has or shares, done or not."""
        for stage in self._lineage(arm):
            if stage.label == label and stage.iteration == iteration:
                return stage
        return None

    def find(self, label: str, arm: str, iteration: int) -> Stage | None:
        """The same, but only if it is done."""
        stage = self.found(label, arm, iteration)
        return stage if stage is not None and stage.done else None

    def own(self, label: str, iteration: int) -> list[Stage]:
        """Done stages of this label, one for each row that has its own; `variational`'s first."""
        return [
            stage
            for arm in self.arms
            for stage in self.stages.values()
            if (stage.label, stage.iteration, stage.arm) == (label, iteration, arm) and stage.done
        ]

    def source(self, stage: Stage, name: str) -> Stage | None:
        """The stage that `stage` was given as its input `name`, where it still lies here."""
        return self.stages.get(stage.inputs.get(name, ""))

    def strangers(self) -> list[Stage]:
        """Stages whose inputs are no longer here: settings changed, or they were deleted."""
        return [
            stage
            for stage in self.stages.values()
            if stage.arm in self.arms
            and any(digest not in self.stages for digest in stage.inputs.values())
        ]

    def _lineage(self, arm: str) -> list[Stage]:
        """The row's own stages and all they were made from."""
        waiting = [stage for stage in self.stages.values() if stage.arm == arm]
        seen: dict[int, Stage] = {}
        while waiting:
            stage = waiting.pop(0)
            if id(stage) in seen:
                continue
            seen[id(stage)] = stage
            waiting += [self.stages[d] for d in stage.inputs.values() if d in self.stages]
        return list(seen.values())


def read_run(path: Path) -> RunFolder:
    """The run in `path`. Raises DataError where there is none."""
    if not (path / SETTINGS).exists():
        raise DataError(
            f"{path} is not the folder of a run: it has no {SETTINGS}; "
            "give the folder that `run.folder` names"
        )
    settings = load_settings(path / SETTINGS)
    stages: dict[str, Stage] = {}
    for stage in _stages(path):
        known = stages.get(stage.folder.fingerprint.digest)
        if known is None or not known.done:
            stages[stage.folder.fingerprint.digest] = stage
    return RunFolder(path, settings, arms(settings), stages)


def read_results(path: Path) -> dict[str, Any]:
    """The results.json in `path`, empty where there is none yet."""
    file = path / RESULTS
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _stages(root: Path) -> Iterator[Stage]:
    for pattern in ("iteration-*/*", "comparisons/*/iteration-*/*"):
        for file in sorted(root.glob(f"{pattern}/{FINGERPRINT}")):
            path = file.parent
            content = json.loads(file.read_text(encoding="utf-8"))
            iteration = int(path.parent.name.partition("-")[2])
            arm = MAIN_ARM if path.parent.parent == root else path.parent.parent.name
            yield Stage(path.name, arm, iteration, StageFolder(path, Fingerprint(content)))
