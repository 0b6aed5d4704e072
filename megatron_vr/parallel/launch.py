"""Start the processes of a run on this host, through torch's elastic agent (what torchrun is)."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence

from megatron_vr.errors import SettingsError

ALREADY_LAUNCHED = "RANK"
PARENT = "MEGATRON_VR_PARENT"


def is_launched() -> bool:
    """Whether this process is a rank that torchrun or `launch` started."""
    return ALREADY_LAUNCHED in os.environ


def is_launched_by_us() -> bool:
    """Whether `launch` started this rank: its parent reads the problems and tells the results."""
    return is_launched() and PARENT in os.environ


def check_launch() -> None:
    """Raise SettingsError where `srun` started several launchers instead of ranks."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1 and not is_launched():
        raise SettingsError(
            f"srun started {tasks} tasks of this command, which would all write the same run; "
            "use `srun --ntasks-per-node=1 torchrun … -m megatron_vr …`, or one task"
        )


def default_processes() -> int:
    """One for each GPU; without a GPU one for each core this process may use, up to 8."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(8, len(os.sched_getaffinity(0)))


def threads_per_process(processes: int) -> int:
    """An equal share of the cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m megatron_vr ARGUMENTS` as `processes` ranks; their exit code.

    The first failing rank's code is returned after the others were ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(processes))
    os.environ[PARENT] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        run_id=f"megatron-vr-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "megatron_vr", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as stopped:
        # The agent has ended the ranks; as a shell would say it.
        return 128 + int(stopped.sigval)
    return 0


def end_with_parent() -> None:
    """End this process soon after its launcher is gone, even by `kill -9`.

    A rank that outlived its launcher would go on writing beside the run that resumes.
    """
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
