"""Start the processes of a run, on this host or as this host's share of several."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager

from megatron_vr.errors import SettingsError, StageError
from megatron_vr.parallel.agent import (
    ALREADY_LAUNCHED,
    agent_config,
    end_ranks,
    send,
    start_agent,
)
from megatron_vr.parallel.blame import read_reports, report_host, reports_of_ranks
from megatron_vr.parallel.hosts import ONE_HOST, SLURM_NAME, Hosts, node_name
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.meeting import SAVE_SECONDS, Meeting
from megatron_vr.parallel.out_of_memory import oom_counter, oom_kills
from megatron_vr.parallel.outcome import End, Failure, end_of, judge

PARENT = "MEGATRON_VR_PARENT"
LOOK_SECONDS = 0.2
# After Ctrl-C: how long ranks may take to end by themselves.
INTERRUPT_SECONDS = 30.0
# Once a host has failed: how long the ranks of another may take to say so and end.
FOLLOW_SECONDS = 5.0


def is_launched() -> bool:
    """Whether this process is a rank that torchrun or `launch` started."""
    return ALREADY_LAUNCHED in os.environ


def is_launched_by_us() -> bool:
    """Whether `launch` started this rank: its parent reads the problems and tells the results."""
    return is_launched() and PARENT in os.environ


def check_launch(starts_servers: bool = False, launchers: int = 1) -> None:
    """Raise SettingsError where `srun` started other than `launchers` launchers instead of ranks.

    Also where ranks that are not ours would hold the GPUs that the run `starts_servers` on.
    """
    if starts_servers and is_launched() and not is_launched_by_us():
        raise SettingsError(
            "engine.servers.launch is set, but torchrun's ranks keep the GPUs that these servers "
            "need; give engine.servers.urls or engine.servers.host_file, with servers on other "
            "GPUs (`megatron-vr serve`), or let `megatron-vr run` start the ranks"
        )
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", str(launchers)))
    if tasks == launchers or is_launched():
        return
    if launchers > 1 or tasks < launchers:
        raise SettingsError(
            f"srun started {tasks} tasks of this command, but --nodes is {launchers}: start one on "
            "each node (`srun --ntasks-per-node=1`), and give their number"
        )
    raise SettingsError(
        f"srun started {tasks} tasks of this command, which would all write the same run; "
        "use `srun --ntasks-per-node=1 torchrun … -m megatron_vr …`, or one task"
    )


def default_processes() -> int:
    """One for each GPU; without a GPU one for each core this process may use, up to 8."""
    if has_gpu():
        import torch

        return torch.cuda.device_count()
    return min(8, len(os.sched_getaffinity(0)))


def has_gpu() -> bool:
    """Whether torch sees a GPU here."""
    import torch

    return torch.cuda.is_available()


def threads_per_process(processes: int) -> int:
    """An equal share of the cores this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // processes)


def launch(
    arguments: Sequence[str], processes: int, interrupt: Interrupt, hosts: Hosts = ONE_HOST
) -> int:
    """Run `python -m megatron_vr ARGUMENTS` as `processes` ranks here; the exit code of the world.

    The first failing rank's code is returned after the others were ended, also those of other
    `hosts`; who died without a message of its own is named on standard error, in the last line, and
    a host that is to blame is reported (`blame`). Once `interrupt` is requested the ranks get the
    same signal, and as much time as they need to save. Raises StageError where hosts do not meet.
    """
    with ExitStack() as stack:
        meeting = stack.enter_context(Meeting(hosts, interrupt)) if hosts.count > 1 else None
        end = _run_ranks(arguments, processes, interrupt, hosts, meeting)
        if meeting is not None and end.code:
            end = meeting.agree(end)
        if end.blame and end.teller == hosts.rank:
            report_host(end.node, (end.line or "").partition(";")[0])
    _say(end, hosts)
    return end.code


def _run_ranks(
    arguments: Sequence[str],
    processes: int,
    interrupt: Interrupt,
    hosts: Hosts,
    meeting: Meeting | None,
) -> End:
    """How the ranks of this host ended, or why another host ended them."""
    counter = oom_counter()
    killed_before = oom_kills(counter)
    with reports_of_ranks() as reports, _environment_of_ranks(processes):
        agent = start_agent(agent_config(hosts, processes), arguments)
        try:
            followed = _follow(agent, interrupt, meeting)
        except KeyboardInterrupt:
            end_ranks(agent, INTERRUPT_SECONDS, signal.SIGINT)
            return End(hosts.rank, node_name(), 128 + signal.SIGINT)
        if followed is not None:
            return followed
        starved = oom_kills(counter) > killed_before
        outcome = judge(_failures(agent), interrupt.requested, starved)
        told = read_reports(reports.blamed), read_reports(reports.followed)
        return end_of(outcome, hosts.rank, node_name(), *told)


@contextmanager
def _environment_of_ranks(processes: int) -> Iterator[None]:
    """What ranks inherit; rollout servers that are started after them choose their own threads."""
    before = dict(os.environ)
    os.environ["OMP_NUM_THREADS"] = str(threads_per_process(processes))
    os.environ[PARENT] = str(os.getpid())
    try:
        yield
    finally:
        for name in ("OMP_NUM_THREADS", PARENT):
            del os.environ[name]
            os.environ |= {name: before[name]} if name in before else {}


def _follow(
    agent: Future[list[Failure]], interrupt: Interrupt, meeting: Meeting | None
) -> End | None:
    """Wait for the ranks, or end them with those of another host, whose end is returned then."""
    told: set[int] = set()
    while not agent.done():
        wait([agent], timeout=LOOK_SECONDS)
        if interrupt.signum is not None:
            told |= send(interrupt.signum, told)
        heard = meeting.heard() if meeting is not None and not agent.done() else None
        if heard is not None:
            if heard.is_stop:
                end_ranks(agent, SAVE_SECONDS, signal.SIGTERM)
            else:
                end_ranks(agent, FOLLOW_SECONDS)
            return heard
    return None


def _failures(agent: Future[list[Failure]]) -> list[Failure]:
    try:
        return agent.result()
    except Exception as error:
        raise StageError(
            f"node {node_name()}: the ranks could not be started ({type(error).__name__}: {error})"
        ) from error


def _say(end: End, hosts: Hosts) -> None:
    line = end.line
    if line is None and end.code and end.node != node_name() and not end.is_stop:
        line = "a rank failed and says why in its log; the ranks of this host were ended"
    if line is not None:
        several = hosts.count > 1 or SLURM_NAME in os.environ
        where = f"node {end.node}: " if several or end.node != node_name() else ""
        print(f"megatron-vr: {where}{line}", file=sys.stderr, flush=True)


def end_with_parent() -> None:
    """End this process soon after its launcher is gone, even by `kill -9`.

    A rank that outlived its launcher would go on writing beside the run that resumes.
    """
    parent = os.environ.get(PARENT)
    if parent is not None:
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process soon after `parent`, its parent process, is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
