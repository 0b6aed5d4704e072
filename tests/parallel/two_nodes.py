"""A small stage on two virtual nodes of this host: a launcher for each, with a name of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

from megatron_vr.algorithm.one_stage import find_node
from megatron_vr.algorithm.run import execute, prepare
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from tests.algorithm.tiny_run import ROOT, SMALL, TOY, environment

NAMES = ("node1", "node2")
SFT = "iteration-0/sft"
# More than any test needs, also on a loaded machine.
BOUND_SECONDS = 280.0


def words(folder: Path, *overrides: str) -> list[str]:
    """Settings of a small run in `folder`, for as many ranks as are started."""
    kept = [word for word in SMALL if not word.startswith("parallel.processes")]
    return [f"run.folder={folder}", *kept, "comparisons={}", *overrides]


def settings_of(folder: Path, *overrides: str) -> Settings:
    return load_settings(TOY, words(folder, *overrides))


def work_on(rank: int, folder: Path, names: list[str], overrides: Sequence[str] = ()) -> None:
    """The stages `names` of a run whose problems are there, on a rank that no launcher started."""
    world = World.from_environment()
    prepared = prepare(settings_of(folder, f"parallel.processes={world.size}", *overrides))
    execute([find_node(prepared.plan, name) for name in names], world, Interrupt())


def stage(folder: Path, name: str, *overrides: str) -> list[str]:
    """The command line that works on one stage."""
    own = words(folder, *overrides)
    return [sys.executable, "-m", "megatron_vr", "stage", str(TOY), name, *own]


def start(
    command: list[str],
    node: str,
    blamed: Path | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.Popen[str]:
    """A launcher on the virtual node `node`, which may report nodes in the file `blamed`."""
    own = {"SLURMD_NODENAME": node, **variables}
    launcher = subprocess.Popen(
        command,
        env=environment() | own | ({"MEGATRON_VR_FAILED_NODES": str(blamed)} if blamed else {}),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    # A core for each node: its rank would use all of them, with a thread on each.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(launcher.pid, {cores[NAMES.index(node) % len(cores)]})
    return launcher


@contextmanager
def two_nodes(
    folder: Path,
    *overrides: str,
    blamed: Path | None = None,
    odd: Mapping[int, str] = MappingProxyType({}),
) -> Iterator[list[subprocess.Popen[str]]]:
    """Two launchers of the first training, one rank each; killed on leaving.

    `odd`: one more override of single nodes.
    """
    meet = f"127.0.0.1:{free_port()}"
    launchers = []
    for rank, name in enumerate(NAMES):
        place = ["--nodes", "2", "--node-rank", str(rank), "--meet", meet, "--processes", "1"]
        own = [*overrides, *([odd[rank]] if rank in odd else [])]
        launchers.append(start([*stage(folder, SFT, *own), *place], name, blamed))
    try:
        yield launchers
    finally:
        for launcher in launchers:
            for rank in ranks_of(launcher):
                rank.kill()
            launcher.kill()
            launcher.communicate()


def ranks_of(launcher: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        children = psutil.Process(launcher.pid).children()
        return [child for child in children if "RANK" in child.environ()]
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return []


def wait_for_ranks(launchers: list[subprocess.Popen[str]]) -> list[list[psutil.Process]]:
    """The ranks of each launcher, once all have one."""
    deadline = time.monotonic() + BOUND_SECONDS
    while not all(ranks := [ranks_of(launcher) for launcher in launchers]):
        assert time.monotonic() < deadline, "no ranks"
        time.sleep(0.05)
    return ranks


def wait_for(file: Path, launchers: list[subprocess.Popen[str]]) -> None:
    """Until the launchers' ranks have written `file`."""
    deadline = time.monotonic() + BOUND_SECONDS
    while not file.exists():
        for launcher in launchers:
            assert launcher.poll() is None, launcher.communicate()[1]
        assert time.monotonic() < deadline, f"no {file}"
        time.sleep(0.05)


def ended(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of a launcher that ends by itself."""
    _, errors = launcher.communicate(timeout=BOUND_SECONDS)
    return launcher.returncode, errors


def last_line(errors: str) -> str:
    return errors.splitlines()[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
