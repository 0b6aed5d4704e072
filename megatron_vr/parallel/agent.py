"""torch's elastic agent in a thread: it starts the ranks of this host and sees their ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Container, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]

from megatron_vr.parallel.hosts import Hosts
from megatron_vr.parallel.outcome import Failure

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

ALREADY_LAUNCHED = "RANK"
KILL_SECONDS = 5.0  # for the kernel to end a killed process


def agent_config(hosts: Hosts, processes: int) -> LaunchConfig:
    """`processes` ranks here, of a world that spans `hosts`, which have met."""
    from torch.distributed.launcher.api import LaunchConfig

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    several = hosts.count > 1
    return LaunchConfig(
        min_nodes=hosts.count,
        max_nodes=hosts.count,
        nproc_per_node=processes,
        # The static one numbers the hosts as we do; c10d's finds a free port by itself.
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=hosts.meet if several else "127.0.0.1:0",
        rdzv_configs={"rank": hosts.rank, "timeout": int(hosts.meet_seconds)} if several else {},
        run_id="megatron-vr" if several else f"megatron-vr-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
    )


def start_agent(config: LaunchConfig, arguments: Sequence[str]) -> Future[list[Failure]]:
    """The agent in a thread of its own; the result is its ranks' failures.

    In the main thread it would handle the signals itself, and SIGKILL ranks that save for long.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    ended: Future[list[Failure]] = Future()

    def work() -> None:
        try:
            elastic_launch(config, sys.executable)("-m", "megatron_vr", *arguments)
        except ChildFailedError as error:
            ended.set_result(
                [
                    Failure(rank, failure.pid, failure.exitcode, failure.timestamp)
                    for rank, failure in error.failures.items()
                ]
            )
        except BaseException as error:
            ended.set_exception(error)
        else:
            ended.set_result([])

    threading.Thread(target=work, name="agent", daemon=True).start()
    return ended


def send(signum: int, told: Container[int] = ()) -> set[int]:
    """Signal every rank whose process id is not in `told`; the ids of the signalled."""
    signalled = set()
    for child in psutil.Process().children():
        try:
            if child.pid not in told and ALREADY_LAUNCHED in child.environ():
                child.send_signal(signum)
                signalled.add(child.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # It has just ended, or is just becoming a rank: the next look tells.
            continue
    return signalled


def end_ranks(agent: Future[list[Failure]], seconds: float, signum: int | None = None) -> None:
    """Ask the ranks to end by `signum`, if any; kill what is left of them after `seconds`."""
    if signum is not None:
        send(signum)
    wait([agent], timeout=seconds)
    if not agent.done():
        send(signal.SIGKILL)
        wait([agent], timeout=KILL_SECONDS)
