"""`megatron-vr stage`: one stage of a run, on one host or several; what submitted jobs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megatron_vr.cli_errors import Config, Overrides, guarded


def stage(
    config: Config,
    name: Annotated[
        str,
        typer.Argument(
            help="the stage's folder within the run's, as in `iteration-1/train` or "
            "`comparisons/rft/iteration-1/weigh`",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="hosts that work on it together")] = 1,
    node_rank: Annotated[
        int | None,
        typer.Option(help="which of them this is, from 0: $SLURM_NODEID", show_default=False),
    ] = None,
    meet: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="host 0, and a free port of it", show_default=False),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="ranks on each host; needed with --nodes  [default: parallel.processes]",
            show_default=False,
        ),
    ] = None,
    hosts: Annotated[
        Path | None,
        typer.Option(
            help="folder or file in which `megatron-vr serve` publishes servers: use those, "
            "and start none",
            show_default=False,
        ),
    ] = None,
) -> None:
    """One stage of a run, by the name of its folder: what a job of `submit` runs.

    The stages that it reads from must be done. Done before, it says so. A training stage, `score`,
    and sampling by the embedded engine start their ranks here, or on each of several hosts that
    meet; the other stages are one process.

    On one host:

    `megatron-vr stage my.yaml iteration-1/train`

    On two hosts with 8 GPUs each, inside of a job:

    `srun --ntasks-per-node=1 bash -c 'megatron-vr stage my.yaml iteration-1/train --nodes 2
    --node-rank $SLURM_NODEID --meet gpu-01:29500 --processes 8'`

    Sampling, with servers that `megatron-vr serve … --hosts runs/mine/servers` keeps up:

    `megatron-vr stage my.yaml iteration-1/sample-posterior --hosts runs/mine/servers`

    Exit codes: 0 done; 1 failed; 2 bad usage or settings; 75 stopped by SIGTERM or SIGUSR1 after
    saving: run the same command again. All hosts of a stage end together, with the same code; the
    last line names the host that failed. Where MEGATRON_VR_FAILED_NODES names a file, a host that
    is to be left out of the next attempt is added to it: a line with its name and the reason.
    """
    from megatron_vr.cli_run import run_node

    with guarded():
        run_node(config, overrides or [], name, nodes, node_rank, meet, processes, hosts)
