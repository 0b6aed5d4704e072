"""`megatron-vr status` and `megatron-vr cancel`: jobs of a run, watched and ended."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from megatron_vr.cli_errors import AsJson, guarded
from megatron_vr.errors import SettingsError

Run = Annotated[Path, typer.Argument(help="folder of a run (run.folder)", show_default=False)]
WATCH_SECONDS = 10.0
FILE_WIDTH = 250


def status(
    run: Run,
    as_json: AsJson = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="again every 10 seconds, until all is done or Ctrl-C")
    ] = False,
) -> None:
    """How far a run is: each stage's state, job, nodes, what is done of all, speed and time left.

    Example: `megatron-vr status runs/qwen2.5-32b --watch`

    It needs the run's folder alone, also of a run without Slurm; where Slurm does not answer it
    shows what the folder tells.
    """
    with guarded():
        from rich.console import Console

        from megatron_vr.cluster.slurm import Slurm
        from megatron_vr.cluster.status_table import as_json as to_json
        from megatron_vr.cluster.status_table import as_table
        from megatron_vr.cluster.survey import survey

        if watch and as_json:
            raise SettingsError("--watch is for people; leave it out with --json")
        if watch:
            _watch(run)
            return
        rows, why_not = survey(run, Slurm())
        if as_json:
            typer.echo(json.dumps(to_json(run, rows, why_not), indent=1))
        else:
            # In a file or a pipe nothing is cut.
            width = None if sys.stdout.isatty() else FILE_WIDTH
            Console(width=width).print(as_table(run, rows, why_not, time.time()))


def cancel(
    run: Run,
    stages: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="NAME", help="this one alone; may be given several times"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End what is queued and running of a run; what is finished stays.

    Example: `megatron-vr cancel runs/mine`, or one job: `--stage iteration-1/train`

    `megatron-vr submit` takes the run up where it stopped.
    """
    with guarded():
        from megatron_vr.cluster.cancel import cancel as end
        from megatron_vr.cluster.slurm import Slurm

        ended = end(run, stages or [], Slurm())
        if as_json:
            told = [{"stage": e.stage, "job": e.job.id, "was": e.job.state} for e in ended]
            typer.echo(json.dumps(told, indent=1))
            return
        for one in ended:
            typer.echo(f"{one.stage}: job {one.job.id} ({one.job.state.lower()}) is told to end")
        if not ended:
            typer.echo("nothing is queued or running")


def _watch(run: Path) -> None:
    from rich.console import Console

    from megatron_vr.cluster.slurm import Slurm
    from megatron_vr.cluster.status_table import as_table
    from megatron_vr.cluster.survey import survey

    slurm, console = Slurm(), Console()
    try:
        while True:
            rows, why_not = survey(run, slurm)
            console.clear()
            console.print(as_table(run, rows, why_not, time.time()))
            if all(row.state == "done" for row in rows):
                return
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        # The way to end it.
        return
