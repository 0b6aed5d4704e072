"""What a run asks of a Slurm cluster: shapes of its jobs, restarts. Nothing of one site."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from megatron_vr.config.frozen import Count, Frozen, Whole

# As sbatch reads them: minutes, M:S, H:M:S, D-H, D-H:M, D-H:M:S.
_TIME = re.compile(r"\d+|\d+:\d{1,2}(:\d{1,2})?|\d+-\d{1,2}(:\d{1,2}){0,2}")


class JobSettings(Frozen):
    """The shape of a job. null: as the kind of job, or the site, has it."""

    nodes: Count | None = None
    gpus: Whole | None = Field(None, description="GPUs on each node")
    processes: Count | None = Field(
        None, description="ranks on each node; null: one for each GPU, or one without GPUs"
    )
    cpus: Count | None = Field(None, description="cores on each node")
    memory: str | None = Field(None, description="memory on each node, as in 200G; 0: all of it")
    time: str | None = Field(None, description="wall-time limit, as in 24:00:00 or 1-12:00:00")
    partition: str | None = Field(None, description="instead of the site's")
    flags: tuple[str, ...] = Field((), description="more of sbatch's own, as in --mem-per-gpu=90G")

    @field_validator("time")
    @classmethod
    def _slurm_reads_it(cls, time: str | None) -> str | None:
        if time is not None and not _TIME.fullmatch(time):
            raise ValueError(f"{time!r} is no time of Slurm's, as 24:00:00, 1-12:00:00 or 90")
        return time

    @field_validator("time", mode="before")
    @classmethod
    def _sixties(cls, time: object) -> object:
        if isinstance(time, int):
            raise ValueError(
                f"YAML reads this as the number {time}; put the time in quotes, as in '24:00:00'"
            )
        return time


class TrainJobs(JobSettings):
    """Jobs of sft, posterior and train."""

    nodes: Count = 1
    gpus: Whole = 8
    memory: str | None = "0"
    time: str = "24:00:00"


class ScoreJobs(JobSettings):
    """Jobs of score."""

    nodes: Count = 1
    gpus: Whole = 8
    memory: str | None = "0"
    time: str = "12:00:00"


class SampleJobs(JobSettings):
    """Jobs of sample, answer and evaluate, and of the benchmarks."""

    nodes: Count = 1
    gpus: Whole = 8
    memory: str | None = "0"
    time: str = "24:00:00"


class CpuJobs(JobSettings):
    """Jobs of problems, base, weigh and export."""

    nodes: Count = 1
    gpus: Whole = 0
    time: str = "4:00:00"


class ClusterSettings(Frozen):
    """How `submit` turns the run into jobs, of which there are four kinds."""

    train: TrainJobs = TrainJobs()
    score: ScoreJobs = ScoreJobs()
    sample: SampleJobs = SampleJobs()
    cpu: CpuJobs = CpuJobs()
    stages: dict[str, JobSettings] = Field(
        default_factory=dict,
        description="other shapes of single stages, as in {posterior: {nodes: 1}}; names of "
        "stages, or of folders such as sample-policy",
    )
    prepare: Literal["here", "job"] = Field(
        "here",
        description="problems and a base on the hub are read by `submit` itself, where there is a "
        "network, or by jobs",
    )
    benchmarks: tuple[str, ...] = Field(
        (), description="asked of the final model in a job of its own; as `evaluate --benchmarks`"
    )
    save_seconds: Count = Field(
        900, description="before the time limit, when a job is told to save and to start again"
    )
    restarts: Whole = Field(
        20, description="times that a job starts again: at its limit, preempted, after a failure"
    )
    failed_nodes: Whole = Field(
        2, description="nodes that a job may lose and go on without; one more fails it"
    )
    meet_seconds: Count = Field(600, description="for all nodes of a job to start their processes")
