"""`megatron-vr submit`: a run as a chain of Slurm jobs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from megatron_vr.cli_errors import AsJson, Config, Overrides, guarded

Site = Annotated[
    Path | None,
    typer.Option(
        help="what your cluster asks of every job (YAML); see slurm/sites/",
        envvar="MEGATRON_VR_SITE",
        show_default=False,
    ),
]


def submit(
    config: Config,
    overrides: Overrides = None,
    site: Site = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="write and show the scripts, and ask Slurm (--test-only)"),
    ] = False,
    first: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STAGE",
            help="this stage and what depends on it, as in train or iteration-2/score",
        ),
    ] = None,
    last: Annotated[
        str | None,
        typer.Option("--until", metavar="STAGE", help="this stage and what it depends on"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The run as Slurm jobs: one for each stage, each after those whose results it reads.

    Shapes, time limits and restarts are `cluster:` of the settings; account, partitions, container
    and modules are the site's file, whose `environment` holds for this command too. Scripts, logs
    and job ids lie in RUN.FOLDER/slurm.

    `megatron-vr submit examples/qwen2.5-32b.yaml --site slurm/sites/plain.yaml --dry-run`

    Run it again to submit what is missing: what is done, queued or running is left alone. A job
    that comes near its time limit, is preempted, or loses a node saves and starts again by itself
    (cluster.restarts); a job that fails takes those behind it off the queue.

    `megatron-vr status RUN` shows how far it is, `megatron-vr cancel RUN` ends it, and
    `megatron-vr plan CONFIG` says beforehand whether it fits and how long it takes.

    Exit codes: 0 submitted, or nothing to do; 1 refused by Slurm or by the run's folder; 2 bad
    usage or settings.
    """
    with guarded():
        from megatron_vr.config.load import load_as, load_settings
        from megatron_vr.config.site_settings import SiteSettings

        of_site = load_as(SiteSettings, site, []) if site is not None else SiteSettings()
        # As in jobs the site's go before the shell's; the hub's library reads HF_HOME when it is
        # imported, so before all that imports it.
        os.environ.update(of_site.environment)

        from megatron_vr.cluster.slurm import Slurm
        from megatron_vr.cluster.submit import Asked
        from megatron_vr.cluster.submit import submit as run
        from megatron_vr.cluster.submitted_table import as_rows, print_submitted

        settings = load_settings(config, overrides or [])
        asked = Asked(settings, of_site, first, last, dry_run)
        lines = run(asked, Slurm(), lambda line: typer.echo(line, err=True))
        if as_json:
            typer.echo(json.dumps(as_rows(lines, settings.run.folder), indent=1))
        else:
            print_submitted(lines, settings.run.folder, dry_run)
