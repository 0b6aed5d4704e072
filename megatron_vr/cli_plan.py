"""`megatron-vr plan`: whether a run fits its GPUs and how long it takes, before it is queued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from megatron_vr.cli_errors import AsJson, Config, Overrides, guarded


def plan(
    config: Config,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option(help="h100, h100-pcie, h200, b200, a100 or a100-pcie")
    ] = "h100",
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="of trainings and scoring, in place of cluster.*.nodes"),
    ] = None,
    measured: Annotated[
        Path | None,
        typer.Option(
            help="YAML with what you have measured, as in `train_tflops_per_gpu: 410`; it takes "
            "the place of predictions"
        ),
    ] = None,
    assume: Annotated[
        list[str] | None,
        typer.Option(help="key=value, as in trace_tokens=4000; the output lists all keys"),
    ] = None,
    search: Annotated[
        bool, typer.Option("--search", help="also look for the fastest layout on these GPUs")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Memory, speed, hours, restarts and disk of a run, from its settings alone. No GPU is needed.

    Exit code 0 where it fits, 1 where it does not: then the layouts that would are shown, with
    settings to paste. Speeds are some 20 % off, whole runs take longer than their parts, and hours
    are as good as the assumed lengths: see docs/planner.md. What the run's folder holds of finished
    stages takes the place of assumptions.

    `megatron-vr plan my.yaml`

    `megatron-vr plan my.yaml --nodes 4 --device h200 --search model.fp8=tensorwise`

    `megatron-vr plan my.yaml --assume trace_tokens=4000 --assume network_gbs=25`
    """
    from megatron_vr.cluster.plan_tables import print_plan
    from megatron_vr.cluster.planned import Asked, plan_run

    with guarded():
        found = plan_run(
            Asked(
                config=config,
                overrides=tuple(overrides or ()),
                device=device,
                nodes=nodes,
                measured=measured,
                assume=tuple(assume or ()),
                search=search,
            )
        )
        if as_json:
            typer.echo(json.dumps(found.as_json(), indent=1))
        else:
            print_plan(found)
    if found.faults:
        raise typer.Exit(1)
