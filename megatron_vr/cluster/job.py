"""A job: one stage of a run, its shape, and what it waits for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["cpu", "ranks", "served", "benchmarks"]


@dataclass(frozen=True)
class Shape:
    """What a job asks of Slurm, for each of its `nodes`."""

    nodes: int
    gpus: int
    processes: int  # ranks on each node
    cpus: int | None
    memory: str | None
    time: str
    partition: str | None
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One node of the run's plan, as a job.

    `name` is the stage's folder within the run's, as in `iteration-1/train`, and unique in the run.
    `kind`: cpu, one process; ranks, a launcher on each node; served, servers of `model` on each
    node and one client; benchmarks, one process that evaluates the run's last policy.
    """

    name: str
    stage: str
    kind: Kind
    shape: Shape
    parents: tuple[str, ...]
    model: Path | None = None

    @property
    def file_name(self) -> str:
        """`name` without folders, as in `iteration-1.train`."""
        return _file_name(self.name)


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps what belongs to its jobs: `RUN/slurm`."""

    run: Path

    @staticmethod
    def of(run: Path) -> RunFiles:
        """Those of the run in `run`, from wherever it is called and also with `..` in it."""
        return RunFiles(Path(os.path.abspath(run)))

    @property
    def folder(self) -> Path:
        """Of everything here."""
        return self.run / "slurm"

    @property
    def settings(self) -> Path:
        """The settings that all jobs use, as they were when the run was first submitted."""
        return self.folder / "settings.yaml"

    @property
    def record(self) -> Path:
        """Which job was submitted for what (`record.py`)."""
        return self.folder / "jobs.json"

    @property
    def cancelled(self) -> Path:
        """There once `cancel` was asked for: no job starts again by itself."""
        return self.folder / "cancelled"

    def script(self, job: Job) -> Path:
        """What sbatch is given."""
        return self.folder / "scripts" / f"{job.file_name}.sh"

    def log(self, job: Job, number: int | str = "%j") -> Path:
        """What job `number` prints; its restarts go on in the same file."""
        return self.folder / "logs" / f"{job.file_name}-{number}.log"

    def state(self, job: Job, number: int | str) -> Path:
        """Folder for what one job passes on between its processes and its restarts."""
        return self.folder / "state" / f"{job.file_name}-{number}"

    def cancelled_job(self, name: str, number: int) -> Path:
        """There once `cancel` was asked for job `number` of stage `name`; in its `state`."""
        return self.folder / "state" / f"{_file_name(name)}-{number}" / "cancelled"


def _file_name(name: str) -> str:
    return name.replace("/", ".")
