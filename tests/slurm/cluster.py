"""A real Slurm on this host: a controller, and nodes with GPUs that are links to /dev/null."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.slurm.conf import lay_out

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
START_SECONDS = 60.0
ATTEMPTS = 3
COMMAND_SECONDS = 30.0
PORTS = range(17_000, 32_000)  # below those that the kernel gives to whoever asks for any


class ClusterFailed(Exception):
    """Slurm did not start."""


def why_missing() -> str | None:
    """What keeps a cluster from being started here; None: nothing."""
    missing = [program for program in PROGRAMS if _program(program) is None]
    if missing:
        return f"{', '.join(missing)}: not installed (apt-get install slurmctld slurmd munge)"
    if os.geteuid() != 0:
        return "slurmd needs root"
    return None


class Cluster:
    """`nodes` virtual nodes (node1 …) with 32 CPUs, 64 GB and 8 GPUs each, as Slurm believes.

    Partitions: main (the default), cpu, low (`grace_seconds` between the signal and the end of a
    preempted job), urgent. A job that is requeued waits `cred_expire` + 1 seconds; that a node was
    lost is noticed `node_timeout` + 20 seconds later. `extra`: more lines of slurm.conf.
    All processes, those of jobs too, end with `stop()`, or with this process, however it ends.
    """

    def __init__(
        self,
        folder: Path,
        nodes: int = 4,
        *,
        cred_expire: int = 5,
        grace_seconds: int = 20,
        node_timeout: int = 20,
        extra: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.nodes = tuple(f"node{index + 1}" for index in range(nodes))
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        self.environment = kept | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._settings = {
            "cred_expire": cred_expire,
            "grace": grace_seconds,
            "node_timeout": node_timeout,
        }
        self._extra = tuple(extra)
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once all nodes are idle. Raises ClusterFailed with the end of the logs."""
        for _ in range(ATTEMPTS):
            shutil.rmtree(self.folder, ignore_errors=True)
            ports = _free_ports(1 + len(self.nodes))
            lay_out(self.folder, self.nodes, ports, self._settings, self._extra)
            self._open_keeper()
            self.start_munge()
            self.start_controller()
            for name in self.nodes:
                self.start_node(name)
            # Somebody else may have taken a port meanwhile.
            if self._comes_up():
                return
            logs = self.logs()
            self.stop()
        raise ClusterFailed(f"Slurm did not start in {ATTEMPTS} attempts\n{logs}")

    def stop(self) -> None:
        """End every process of the cluster at once, and of its jobs."""
        if self._keeper is None:
            return
        assert self._keeper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._keeper.stdin.close()
        self._keeper.wait()
        self._keeper = None

    def run(
        self, *command: str | Path, check: bool = True, seconds: float = COMMAND_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's programs, or another, against this cluster."""
        done = subprocess.run(
            [str(word) for word in command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stderr}")
        return done

    def state(self, job: int) -> str:
        """The state of `job` as squeue has it, as in RUNNING."""
        return self.run("squeue", "-h", "-t", "all", "-j", str(job), "-o", "%T").stdout.strip()

    def wait_until(self, predicate: Callable[[], bool], seconds: float = 60.0) -> None:
        """Return when `predicate` holds; it fails, with what Slurm knows, when it does not."""
        end = time.monotonic() + seconds
        while not predicate():
            if time.monotonic() > end:
                queue = self.run("squeue", "-t", "all", "-o", "%i %j %T %r %N", check=False).stdout
                raise AssertionError(f"not within {seconds} s\n{queue}\n{self.logs()}")
            time.sleep(0.1)

    def node_down(self, name: str, reason: str = "test") -> None:
        """Say that the node is down: its jobs start again elsewhere. Its processes live on."""
        self.run("scontrol", "update", f"nodename={name}", "state=down", f"reason={reason}")

    def node_up(self, name: str) -> None:
        """Take back a node that was said to be down, or was lost (call `start_node` first)."""
        self.run("scontrol", "update", f"nodename={name}", "state=resume", check=False)
        self.wait_until(lambda: self._node_state(name).startswith(("idle", "mix", "alloc")))

    def lose_node(self, name: str) -> None:
        """Kill the node's daemon and all that it runs, as a power cut does."""
        mark = f"VR_TEST_NODE={self.folder}/{name}\0"
        daemons = [p for p in psutil.process_iter() if mark in _environment(p.pid)]
        doomed = {p for daemon in daemons for p in (daemon, *daemon.children(recursive=True))}
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def start_node(self, name: str) -> None:
        """Start the node's daemon."""
        mark = {"VR_TEST_NODE": f"{self.folder}/{name}"}
        self._order([_path("slurmd"), "-D", "-N", name], f"slurmd.{name}", mark)

    def start_munge(self) -> None:
        """Start what signs the messages; return once it listens."""
        run = self.folder / "run"
        options = {
            "key-file": self.folder / "munge.key",
            "socket": run / "munge.sock",
            "pid-file": run / "munged.pid",
            "seed-file": run / "munged.seed",
            "log-file": self.folder / "log/munged.log",
            "num-threads": 2,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self._order([_path("munged"), "--foreground", "--force", *flags], "munged")
        end = time.monotonic() + START_SECONDS
        while not (run / "munge.sock").exists() and time.monotonic() < end:
            time.sleep(0.02)

    def start_controller(self) -> None:
        """Start the controller, which takes up the state of an earlier one."""
        self._order([_path("slurmctld"), "-D", "-i"], "slurmctld")

    def stop_controller(self) -> None:
        """End the controller: from now on none of Slurm's programs is answered.

        It saves its state first; a kill would lose jobs of the last seconds.
        """
        controller = psutil.Process(int((self.folder / "run/slurmctld.pid").read_text()))
        controller.terminate()
        controller.wait(START_SECONDS)

    def logs(self, lines: int = 20) -> str:
        """The last lines of every log."""
        told = []
        for file in sorted((self.folder / "log").iterdir()):
            end = file.read_text(errors="replace").splitlines()[-lines:]
            told += [f"== {file.name}", *end]
        return "\n".join(told)

    def _order(self, argv: list[str], log: str, more: dict[str, str] | None = None) -> None:
        assert self._keeper is not None and self._keeper.stdin is not None
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(Path.home()),
            "SLURM_CONF": self.environment["SLURM_CONF"],
            **(more or {}),
        }
        file = str(self.folder / f"log/{log}.out")
        order = {"argv": argv, "environment": environment, "log": file}
        self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
        self._keeper.stdin.flush()

    def _open_keeper(self) -> None:
        keeper = Path(__file__).with_name("keeper.py")
        self._keeper = subprocess.Popen(
            [sys.executable, str(keeper), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def _comes_up(self) -> bool:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            states = self._states()
            if len(states) == len(self.nodes) and set(states.values()) == {"idle"}:
                return True
            if any("already in use" in line for line in self.logs().splitlines()):
                return False
            time.sleep(0.1)
        return False

    def _states(self) -> dict[str, str]:
        with contextlib.suppress(subprocess.TimeoutExpired):
            told = self.run(
                "sinfo", "-h", "-p", "main", "-N", "-o", "%N %t", check=False, seconds=2
            )
            return dict(line.split() for line in told.stdout.splitlines())
        return {}

    def _node_state(self, name: str) -> str:
        return self._states().get(name, "")


def _free_ports(count: int) -> list[int]:
    """Ports of this host that nobody listens on just now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, k=1000):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", port))
            found.append(port)
        if len(found) == count:
            return found
    raise ClusterFailed(f"no {count} free ports in {PORTS}")


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _path(name: str) -> str:
    found = _program(name)
    assert found is not None, name
    return found


def _environment(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    return ""
