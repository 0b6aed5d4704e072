"""The cluster of these tests: nothing of it is left behind, and its nodes can be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import needs_slurm

ROOT = Path(__file__).parents[2]
OWNER = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster

cluster = Cluster(Path(sys.argv[1]), nodes=1)
cluster.start()
job = int(cluster.run("sbatch", "--parsable", "--output=/dev/null", sys.argv[2]).stdout)
cluster.wait_until(lambda: cluster.state(job) == "RUNNING")
print("running", flush=True)
if sys.stdin.readline():
    cluster.stop()
    print("stopped", flush=True)
time.sleep(300)
"""


def left_of(folder: Path) -> list[str]:
    """Living processes that name the folder, or were told of it."""
    found = []
    for process in psutil.process_iter():
        try:
            told = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if any(str(folder) in word for word in told):
            found.append(f"{process.pid} {process.cmdline()}")
    return found


@pytest.mark.parametrize("end", ["stops", "is killed"])
def test_no_process_outlives_the_cluster_or_its_owner(tmp_path: Path, end: str) -> None:
    needs_slurm()
    cluster, script = tmp_path / "c", tmp_path / "job.sh"
    # Processes of jobs have SLURM_CONF in their environment; one leaves its session, as daemons do.
    script.write_text("#!/bin/bash\nsetsid sleep 299 &\nsrun sleep 298\n")
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(cluster), str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as owner:
        try:
            assert owner.stdin is not None and owner.stdout is not None
            assert owner.stdout.readline() == "running\n"
            there = "\n".join(left_of(cluster))
            assert all(name in there for name in ("slurmctld", "slurmd", "munged", "sleep"))
            if end == "stops":
                owner.stdin.write("stop\n")
                owner.stdin.flush()
                assert owner.stdout.readline() == "stopped\n"
        finally:
            os.kill(owner.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while (left := left_of(cluster)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def test_a_job_goes_on_elsewhere_when_its_node_is_said_to_be_down(
    own_slurm: Cluster, tmp_path: Path
) -> None:
    script = tmp_path / "job.sh"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --requeue --output={tmp_path}/out --open-mode=append\n"
        "echo $SLURM_JOB_NODELIST; sleep 120\n"
    )
    job = int(own_slurm.run("sbatch", "--parsable", script).stdout)
    out = tmp_path / "out"
    own_slurm.wait_until(lambda: out.exists() and out.read_text() == "node1\n")
    own_slurm.node_down("node1")
    own_slurm.wait_until(lambda: out.read_text().splitlines()[-1] == "node2")
    assert own_slurm.state(job) == "RUNNING"
    own_slurm.node_up("node1")
    own_slurm.lose_node("node1")
    own_slurm.start_node("node1")
    own_slurm.node_up("node1")
