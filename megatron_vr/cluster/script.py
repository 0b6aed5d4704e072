"""The sbatch script of a job: templates of `slurm/`, filled in. Pure, but for the templates."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from jinja2 import (
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
from megatron_vr.config.cluster_settings import ClusterSettings
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError

# Variables of every job, where neither the site nor who submits has set them.
ALWAYS = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
# A rank whose NCCL hangs ends, and leaves a trace of what it waited for, in minutes.
WITH_GPUS = {
    "NCCL_DEBUG": "WARN",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "900",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
}
LARGEST_SAVE_SECONDS = 65535
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
    cluster, servers = settings.cluster, settings.engine.servers
    folder = folder or Path.cwd()
    python = python or Path(sys.executable)
    _check(job, cluster, site, servers.api_key_variable)
    template = f"{job.kind}.sh.jinja"
    values = {
        "job": job,
        "shape": job.shape,
        "files": files,
        "cluster": cluster,
        "site": site,
        "options": _options(job, files, cluster, site, name, folder),
        "defaults": ALWAYS | (WITH_GPUS if job.shape.gpus else {}),
        "state": str(files.state(job, "")).removesuffix("-"),
        "log": str(files.log(job, "")).removesuffix("-.log"),
        "srun": _srun(job, files, cluster, site, folder),
        "command": _command(job, files, site, folder, python),
        "api_key": servers.api_key_variable,
        "replicas": servers.launch.replicas if servers.launch else 1,
        "iteration": settings.run.iterations,
    }
    try:
        return _environment(site).get_template(template).render(values)
    except TemplateSyntaxError as error:
        place = f"{error.filename or error.name}, line {error.lineno}"
        raise SettingsError(f"the template {place} cannot be read: {error.message}") from error
    except TemplateError as error:
        raise SettingsError(
            f"the template {template} of {site.templates or 'megatron-vr'} failed for "
            f"{job.name}: {error}"
        ) from error


def _check(job: Job, cluster: ClusterSettings, site: SiteSettings, key: str) -> None:
    for variable in (*site.environment, key):
        if not _VARIABLE.fullmatch(variable):
            raise SettingsError(f"{variable!r} is no name of an environment variable")
    limit = seconds_of(job.shape.time)
    if cluster.save_seconds > LARGEST_SAVE_SECONDS:
        raise SettingsError(
            f"cluster.save_seconds={cluster.save_seconds} is more than Slurm's largest, "
            f"{LARGEST_SAVE_SECONDS}"
        )
    if 0 < limit <= cluster.save_seconds:
        raise SettingsError(
            f"{job.name}: its time limit {job.shape.time} leaves nothing before it is told to save "
            f"(cluster.save_seconds={cluster.save_seconds}); give it more time, or less to save"
        )


def seconds_of(time: str) -> int:
    """A time limit as sbatch reads it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S), in seconds."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _environment(site: SiteSettings) -> Environment:
    """A site's templates, then those shipped; these are also `shipped/NAME`, to be extended."""
    shipped = PackageLoader("megatron_vr.cluster", "templates")
    own = []
    if site.templates is not None:
        folder = site.templates.expanduser()
        if not folder.is_dir():
            raise SettingsError(f"templates: {folder} of the site file is no folder")
        own = [FileSystemLoader(folder)]
    environment = Environment(
        loader=ChoiceLoader([*own, shipped, PrefixLoader({"shipped": shipped})]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["comment"] = lambda value: str(value).replace("\n", " ")
    return environment


def _options(
    job: Job,
    files: RunFiles,
    cluster: ClusterSettings,
    site: SiteSettings,
    name: str,
    folder: Path,
) -> list[str]:
    """What follows each #SBATCH; later ones go before earlier ones."""
    shape = job.shape
    # sbatch replaces what follows a percent sign, here only the job's number.
    log = str(files.log(job, "\0")).replace("%", "%%").replace("\0", "%j")
    usual = site.gpu_partition if shape.gpus else site.cpu_partition
    asked = {
        "job-name": name,
        "output": log,
        "open-mode": "append",
        "chdir": str(folder),
        "nodes": shape.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": shape.cpus,
        "mem": shape.memory,
        "time": shape.time,
        "partition": shape.partition or usual,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "signal": f"B:USR1@{cluster.save_seconds}",
        "kill-on-invalid-dep": "yes",
        # The tokens and keys of who submits reach the job, and are in no file.
        "export": "ALL",
        # Limits of a login node, as on locked memory, are none of a job's.
        "propagate": "NONE",
    }
    options = [f"--{key}={_quoted(value)}" for key, value in asked.items() if value is not None]
    options.append("--requeue")
    if shape.gpus:
        options += shlex.split(site.gpu_request.replace("{gpus}", str(shape.gpus)))
        options += ["--exclusive"] if site.exclusive else []
    options += [*site.flags, *shape.flags]
    for option in options:
        if "\n" in option or "\r" in option:
            raise SettingsError(f"{job.name}: sbatch takes no line end, as in {option!r}")
    return options


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def _srun(
    job: Job, files: RunFiles, cluster: ClusterSettings, site: SiteSettings, folder: Path
) -> list[str]:
    """Flags of every step."""
    flags = [
        *("--export=ALL", "--input=none", "--mpi=none", "--cpu-bind=none", "--ntasks-per-node=1"),
        "--kill-on-bad-exit=0",
        f"--wait={max(600, cluster.save_seconds)}",
    ]
    if job.shape.cpus is not None:
        # Since Slurm 22.05 steps do not take it from the job.
        flags.append(f"--cpus-per-task={job.shape.cpus}")
    container = site.container
    if container.kind == "pyxis":
        mounts = ",".join(_mounts(site, files, folder))
        flags += [
            f"--container-image={container.image}",
            f"--container-mounts={mounts}",
            f"--container-workdir={folder}",
            *container.flags,
        ]
    return flags


def _command(job: Job, files: RunFiles, site: SiteSettings, folder: Path, python: Path) -> str:
    """The words of a shell array that calls megatron-vr."""
    container = site.container
    usual = f"{_quoted(python)} -m megatron_vr" if container.kind == "none" else "megatron-vr"
    command = site.command or usual
    if container.kind != "apptainer":
        return command
    words: Iterable[str] = [
        *("apptainer", "exec", *(["--nv"] if job.shape.gpus else []), "--pwd", str(folder)),
        *(word for mount in _mounts(site, files, folder) for word in ("--bind", mount)),
        *container.flags,
        str(container.image),
    ]
    return f"{shlex.join(words)} {command}"


def _mounts(site: SiteSettings, files: RunFiles, folder: Path) -> tuple[str, ...]:
    """Also the run's folder and the working folder, at their own places."""
    for path in (files.run, folder):
        if re.search(r"[:,\n]", str(path)):
            raise SettingsError(
                f"a container cannot be given the folder {str(path)!r}: no colon or comma in its "
                "path, please"
            )
    own = [f"{path}:{path}" for path in (files.run, folder)]
    return tuple(dict.fromkeys([*own, *site.container.mounts]))
