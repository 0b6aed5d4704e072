"""The scripts of a 32B run that are kept in this folder, for three kinds of sites.

`python -m tests.cluster.golden.chain` writes them anew; read the difference before it is kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import yaml

from megatron_vr.cluster.job import Job, Kind, RunFiles, Shape
from megatron_vr.cluster.script import render
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SITES = ("plain", "pyxis", "apptainer")
FILES = RunFiles(Path("/scratch/ada/runs/my 32b"))

GPUS = Shape(2, 8, 8, None, "0", "24:00:00", None, ())
CPUS = Shape(1, 0, 1, 32, "256G", "4:00:00", None, ())
MODEL = FILES.run / "iteration-1/export-posterior/model"


def _job(name: str, kind: Kind, shape: Shape, model: Path | None = None) -> Job:
    return Job(name, name.split("/")[-1].split("-")[0], kind, shape, (), model)


JOBS = {
    "train": _job("iteration-1/train", "ranks", GPUS),
    "sample": _job("iteration-1/sample-posterior", "served", GPUS, MODEL),
    "score": _job("iteration-1/score", "ranks", replace(GPUS, time="12:00:00", flags=("--nice",))),
    "weigh": _job("iteration-1/weigh", "cpu", CPUS),
    "benchmarks": _job("benchmarks", "benchmarks", replace(GPUS, nodes=1)),
}
KEPT = tuple((site, job) for site in SITES for job in JOBS)


def site_of(name: str) -> SiteSettings:
    """One of the example sites."""
    text = (ROOT / f"slurm/sites/{name}.yaml").read_text()
    return SiteSettings(**yaml.safe_load(text))


def settings_of(*overrides: str) -> Settings:
    """The run, with two benchmarks at its end."""
    own = [f"run.folder={FILES.run}", "cluster.benchmarks=[aime24, math500]"]
    return load_settings(ROOT / "examples/qwen2.5-32b.yaml", [*own, *overrides])


def script(site: str, job: str) -> str:
    """The script of one job at one site."""
    return render(
        JOBS[job],
        FILES,
        settings_of(),
        site_of(site),
        name=f"vr-0123abcd:{JOBS[job].name}",
        folder=Path("/home/ada/work"),
        python=Path("/home/ada/vr/bin/python"),
    )


def golden(site: str, job: str) -> Path:
    """Where it is kept."""
    return HERE / f"{site}-{job}.sh"


if __name__ == "__main__":
    for pair in KEPT:
        golden(*pair).write_text(script(*pair))
