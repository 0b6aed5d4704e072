"""The sbatch script of a job: templates of `slurm/`, filled in. It reads nothing else."""

from __future__ import annotations

import shlex
import sys
import traceback
from pathlib import Path

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    PrefixLoader,
    StrictUndefined,
    TemplateError,
    TemplateSyntaxError,
)

from megatron_vr.cluster.job import Job, RunFiles
from megatron_vr.cluster.planner.limits import slurm_seconds
from megatron_vr.cluster.script_parts import (
    LAUNCHED,
    Rendered,
    check,
    command,
    defaults,
    options,
    srun_flags,
)
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError

# What does not end after a node was judged bad hangs.
HANG_SECONDS = 60
# For all tasks of a step to end, once one has.
WAIT_SECONDS = 600
SHIPPED = PackageLoader("megatron_vr.cluster", "templates")
# What a template's own expressions may raise.
FAULTS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, OSError)


def render(
    job: Job,
    files: RunFiles,
    settings: Settings,
    site: SiteSettings,
    *,
    name: str,
    folder: Path | None = None,
    python: Path | None = None,
) -> str:
    """The script of `job`; `name` is what Slurm calls it.

    `folder` is where the settings' relative paths begin; None: the working folder. `python` runs
    megatron-vr where neither the site nor its container says how; None: this one.
    Raises SettingsError for a template or a value that cannot be used.
    """
    of = Rendered(
        job, files, settings, site, folder or Path.cwd(), python or Path(sys.executable), name
    )
    check(of)
    servers, cluster = settings.engine.servers, settings.cluster
    values = {
        "job": job,
        "shape": job.shape,
        "files": files,
        "cluster": cluster,
        "site": site,
        "options": options(of),
        "defaults": defaults(job),
        "launched": LAUNCHED,
        "state": str(files.state(job, "")).removesuffix("-"),
        "log": str(files.log(job, "")).removesuffix("-.log"),
        "srun": srun_flags(of),
        "command": command(of),
        "api_key": servers.api_key_variable,
        "replicas": servers.launch.replicas if servers.launch else 1,
        "limit_seconds": slurm_seconds(job.shape.time),
        "hang_seconds": HANG_SECONDS,
        "wait_seconds": max(WAIT_SECONDS, cluster.save_seconds),
        "iteration": settings.run.iterations,
    }
    template = f"{job.kind}.sh.jinja"
    try:
        return _environment(site).get_template(template).render(values)
    except TemplateSyntaxError as error:
        place = f"{error.filename or error.name}, line {error.lineno}"
        raise SettingsError(f"the template {place} cannot be read: {error.message}") from error
    except FAULTS as error:
        where = _place(error) or template
        told = f"{type(error).__name__}: {error}"
        raise SettingsError(f"the template {where} failed for {job.name}: {told}") from error


def _environment(site: SiteSettings) -> Environment:
    """A site's templates, then those shipped; these are also `shipped/NAME`, to be extended."""
    environment = Environment(
        loader=ChoiceLoader([*_own(site), SHIPPED, PrefixLoader({"shipped": SHIPPED})]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["comment"] = lambda value: " ".join(str(value).splitlines())
    return environment


def _own(site: SiteSettings) -> list[BaseLoader]:
    if site.templates is None:
        return []
    folder = site.templates.expanduser()
    if not folder.is_dir():
        raise SettingsError(f"templates: {folder} of the site file is no folder")
    own = FileSystemLoader(folder)
    known = [name for name in SHIPPED.list_templates() if name.endswith(".jinja")]
    if not set(known) & set(own.list_templates()):
        raise SettingsError(
            f"templates: {folder} of the site file has none of the templates that it can replace: "
            f"{', '.join(known)}"
        )
    return [own]


def _place(error: BaseException) -> str | None:
    """Template and line of a fault: jinja makes them look like Python's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".jinja")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}," if frames else None
