"""A small run of the toy task as jobs of a real Slurm: two nodes, a rank on each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.algorithm.tiny_run import ROOT, SMALL, TOY, environment
from tests.slurm.cluster import Cluster

SHAPES = [
    "parallel.processes=auto",
    "comparisons={}",
    "cluster.train={nodes: 2, gpus: 1, cpus: 1, memory: 1G, time: '10'}",
    "cluster.score={nodes: 2, gpus: 1, cpus: 1, memory: 1G, time: '10'}",
    "cluster.sample={nodes: 2, gpus: 1, cpus: 1, memory: 1G, time: '10'}",
    "cluster.cpu={cpus: 1, memory: 1G, time: '10', partition: cpu}",
    "cluster.save_seconds=60",
    "policy.save_every=1000",
    "posterior.train.save_every=1000",
    "train.save_every=10",
]
# Slurm of the tests binds no job to its cores: a node's job gets one, as it asked for, and so the
# ranks have one thread each, as those of `run` with two processes have.
COMMAND = """\
#!/bin/bash
exec taskset -c "$((SLURM_NODEID % 2))" {python} -m megatron_vr "$@"
"""


def call(
    cluster: Cluster, verb: str, folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """`megatron-vr VERB` on the settings of the run in `folder`."""
    command = [sys.executable, "-m", "megatron_vr", verb, str(TOY), f"run.folder={folder}"]
    return subprocess.run(
        [*command, *SMALL, *SHAPES, *words, "--site", str(site(folder))],
        capture_output=True,
        text=True,
        env=environment() | cluster.environment | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=200,
        cwd=ROOT,
    )


def site(folder: Path) -> Path:
    """A site file beside the run."""
    called = folder.with_name("megatron-vr.sh")
    called.write_text(COMMAND.format(python=sys.executable))
    called.chmod(0o755)
    file = folder.with_name("site.yaml")
    file.write_text(f"command: {called}\n")
    return file


def submit(cluster: Cluster, folder: Path, *words: str) -> list[dict[str, Any]]:
    """Submit the run; what became of each job."""
    done = call(cluster, "submit", folder, "--json", *words)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def live_jobs(cluster: Cluster) -> list[str]:
    """What Slurm has queued or runs, a line for each."""
    return cluster.run("squeue", "-h", "-o", "%i %j %T %r").stdout.splitlines()


def finish(cluster: Cluster, seconds: float = 240.0) -> None:
    """Return when nothing is queued any more."""
    cluster.wait_until(lambda: not live_jobs(cluster), seconds)


def logs(folder: Path) -> str:
    """All that the jobs of the run printed."""
    files = sorted((folder / "slurm/logs").glob("*.log"))
    return "\n".join(f"== {file.name}\n{file.read_text(errors='replace')}" for file in files)


def tables(folder: Path) -> dict[str, pa.Table]:
    """Every part of every stage, without how long each verdict took."""
    found = {
        str(part.relative_to(folder)): pq.read_table(part)
        for part in sorted(folder.rglob("part-*.parquet"))
    }
    return {
        name: table.drop_columns([c for c in ("seconds",) if c in table.column_names])
        for name, table in found.items()
    }


def check_same_tables(found: Path, expected: Path) -> None:
    """Fail, with the jobs' logs, unless both runs have the same tables."""
    own, other = tables(found), tables(expected)
    assert own.keys() == other.keys(), logs(found)
    differing = [name for name in own if not own[name].equals(other[name])]
    assert not differing, f"{differing} differ\n{logs(found)}"
