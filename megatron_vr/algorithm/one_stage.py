"""One stage of a run by the name of its folder, as a submitted job works on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from megatron_vr.algorithm.check_model import check_model
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.algorithm.plan import Node, Plan, make_plan
from megatron_vr.algorithm.run import (
    Prepared,
    check_processes,
    processes_of,
    starts_servers,
)
from megatron_vr.algorithm.runner import check_inputs
from megatron_vr.config.checks import check_settings
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.config.settings import Settings
from megatron_vr.errors import SettingsError
from megatron_vr.parallel.hosts import Hosts, check_hosts
from megatron_vr.parallel.launch import check_launch, has_gpu, is_launched
from megatron_vr.problems.nearest import suggestion

# Their work is one process's, or not split over ranks.
SINGLE_STAGES = ("problems", "base", "weigh", "export")


@dataclass(frozen=True)
class Asked:
    """Which stage, on how many hosts and processes on each, with servers published where."""

    name: str
    hosts: Hosts
    processes: int | None = None
    servers: Path | None = None


@dataclass(frozen=True)
class OneStage:
    """A node of the plan, and how many processes on this host work on it."""

    prepared: Prepared
    node: Node
    processes: int


def prepare_stage(settings: Settings, asked: Asked) -> OneStage:
    """Check all that concerns the stage, before a process is started or a model loaded.

    Raises SettingsError, DataError where problems cannot be read, or StageError where the stage's
    folder was made under other settings.
    """
    plan = make_plan(settings, digests(settings))
    node = find_node(plan, asked.name)
    if asked.servers is not None:
        node = with_servers(node, asked.servers)
    check_hosts(asked.hosts)
    check_launch(node.is_served and starts_servers(node.settings), asked.hosts.count)
    processes, world = _processes(node, asked)
    own = node.settings
    where = "" if node.arm == MAIN_ARM else f"comparisons.{node.arm}: "
    ranks = world or layout_of(own).model_ranks
    # What models need is looked for where they are computed.
    here = world is not None
    check_settings(own, ranks, where, on_gpu=has_gpu() if here else None, installed_here=here)
    check_model(own, ranks)
    node.folder.check()
    if not node.folder.done:
        check_inputs(node)
    return OneStage(Prepared(settings, world or 1, plan), node, processes)


def find_node(plan: Plan, name: str) -> Node:
    """The node that is called `name`. Raises SettingsError where there is none."""
    known = {node.name: node for node in plan.nodes}
    found = known.get(name.strip("/"))
    if found is None:
        raise SettingsError(
            f"{name!r} is no stage of this run; {suggestion(name, known)}\n"
            f"stages: {', '.join(known)}"
        )
    return found


def with_servers(node: Node, folder: Path) -> Node:
    """`node` as the client of servers that `folder` tells of; its fingerprint stays.

    Raises SettingsError where no servers do its work.
    """
    if not node.is_served:
        raise SettingsError(
            f"--hosts is {folder}, but no rollout servers work on {node.label}: that is for "
            "sample, answer and evaluate, with engine.kind vllm or sglang"
        )
    engine = node.settings.engine
    places = {"launch": None, "urls": (), "host_file": folder}
    servers = engine.servers.model_copy(update=places)
    engine = engine.model_copy(update={"servers": servers})
    return replace(node, settings=node.settings.model_copy(update={"engine": engine}))


def _processes(node: Node, asked: Asked) -> tuple[int, int | None]:
    """Processes on this host, and in all; in all None where the model's layout is of no concern."""
    hosts, settings = asked.hosts.count, node.settings
    if node.stage in SINGLE_STAGES or node.is_served:
        if hosts > 1 or asked.processes not in (None, 1):
            raise SettingsError(
                f"{node.label} is the work of one process; leave out --nodes and --processes"
            )
        return 1, None
    if is_launched():
        return 1, processes_of(settings)
    if hosts > 1 and asked.processes is None:
        raise SettingsError(
            f"--nodes is {hosts}: say with --processes how many ranks each of them starts"
        )
    if asked.processes is None:
        return processes_of(settings), processes_of(settings)
    told = f"--nodes {hosts} with --processes {asked.processes} start"
    return asked.processes, check_processes(settings, hosts * asked.processes, told)


def hosts_of(settings: Settings, nodes: int, node_rank: int | None, meet: str | None) -> Hosts:
    """The hosts of the command line. Raises SettingsError for options that do not go together."""
    if nodes == 1:
        if node_rank not in (None, 0):
            raise SettingsError(f"--node-rank is {node_rank}, but --nodes is 1; give both, or none")
        return Hosts()
    if node_rank is None or meet is None:
        raise SettingsError(
            f"--nodes is {nodes}: give --node-rank ($SLURM_NODEID) and --meet HOST:PORT too"
        )
    return Hosts(
        count=nodes,
        rank=node_rank,
        meet=meet,
        meet_seconds=settings.cluster.meet_seconds,
        patience_seconds=settings.parallel.dead_after_seconds,
    )
