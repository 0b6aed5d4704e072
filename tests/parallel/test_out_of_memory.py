"""The kernel's counter of kills for want of memory: where it is, and what it says of a rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_vr.parallel.out_of_memory import OF_HOST, counter_files, oom_counter, parse_kills
from tests.algorithm.tiny_run import ROOT

EVENTS = "low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
# Of kernels before 4.13.
OLD_CONTROL = "oom_kill_disable 0\nunder_oom 0\n"


@pytest.mark.parametrize(
    ("text", "kills"), [(EVENTS, 2), (CONTROL, 5), (OLD_CONTROL, None), ("", None)]
)
def test_kills_are_counted_in_one_line(text: str, kills: int | None) -> None:
    assert parse_kills(text) == kills


def test_this_host_counts_somewhere() -> None:
    assert parse_kills(oom_counter().read_text()) is not None
    assert parse_kills(OF_HOST.read_text()) is not None


V1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
V1 += "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:16 - cgroup cgroup rw,memory\n"
V1 += "36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices\n"
V1 += "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
V1_OWN = "5:devices:/x\n4:memory:/slurm/uid_0/job_12/step_0\n0::/\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V2_OWN = "0::/system.slice/slurmstepd.scope/job_12/step_0/user/task_0\n"


def test_with_v1_memorys_own_hierarchy_is_looked_into_first() -> None:
    files = counter_files(V1_OWN, V1)
    folder = "/sys/fs/cgroup/memory/slurm/uid_0/job_12"
    assert files[0] == Path(folder, "step_0/memory.oom_control")
    assert files[1] == Path(folder, "memory.oom_control")
    assert files[-1] == Path("/sys/fs/cgroup/unified/memory.events")
    assert not any("devices" in str(file) for file in files)


def test_with_v2_the_nearest_folder_is_looked_into_first() -> None:
    files = counter_files(V2_OWN, V2)
    folder = "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_12"
    assert files[0] == Path(folder, "step_0/user/task_0/memory.events")
    assert files[3] == Path(folder, "memory.events")
    assert len(files) == 7


def test_in_a_container_folders_are_those_below_the_mount() -> None:
    mounts = "50 49 0:32 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    own = "4:memory:/docker/ab/job_1\n"
    assert counter_files(own, mounts)[0] == Path("/sys/fs/cgroup/memory/job_1/memory.oom_control")
    assert counter_files("4:memory:/elsewhere\n", mounts) == []


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A cgroup with 512 MiB, its processes' counter in it; skipped where none can be made."""
    own = oom_counter()
    if own == OF_HOST or not os.access(own.parent, os.W_OK):
        pytest.skip("making a cgroup needs root, and memory's controller")
    group = own.parent / f"megatron-vr-test-{uuid.uuid4().hex}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    limits = {"memory.oom_control": ["memory.limit_in_bytes"]}
    limits |= {"memory.events": ["memory.max", "memory.swap.max"]}
    for name in limits[own.name]:
        if not (group / name).exists():
            group.rmdir()
            pytest.skip("memory's controller is not handed on to new cgroups")
        (group / name).write_text("0" if "swap" in name else str(1 << 29))
    yield group
    group.rmdir()


def test_a_rank_that_wanted_too_much_memory_is_named_and_its_host_is_not_blamed(
    small_cgroup: Path, tmp_path: Path
) -> None:
    blamed = tmp_path / "failed"
    hungry = tmp_path / "hungry" / "megatron_vr"
    hungry.mkdir(parents=True)
    (hungry / "__init__.py").touch()
    (hungry / "__main__.py").write_text("kept = b'x' * (2 << 30)\n")
    code = (
        "import os, sys\n"
        f"open({str(small_cgroup / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
        "from megatron_vr.parallel.interrupt import Interrupt\n"
        "from megatron_vr.parallel.launch import launch\n"
        # The rank finds another package of this name.
        f"os.environ['PYTHONPATH'] = {str(tmp_path / 'hungry')!r}\n"
        f"os.chdir({str(tmp_path / 'hungry')!r})\n"
        "sys.exit(launch([], 1, Interrupt()))\n"
    )
    own = {"MEGATRON_VR_FAILED_NODES": str(blamed), "SLURMD_NODENAME": "gpu-7"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | own | {"OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("megatron-vr: node gpu-7: rank 0 (pid "), done.stderr
    assert "was killed for want of memory; raise `memory`" in last
    assert not blamed.exists()
    assert signal.SIGKILL.name not in last
