"""What a job's script asks of sbatch, srun and a container. Pure."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.cluster.job import Job, RunFiles
from megatron_vr.cluster.planner.limits import slurm_seconds
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError

LARGEST_SAVE_SECONDS = 65535
# Variables of every job, where neither the site nor who submits has set them.
ALWAYS = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
# A rank whose NCCL hangs ends, and leaves a trace of what it waited for, in minutes.
WITH_GPUS = {
    "NCCL_DEBUG": "WARN",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": "900",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    "TORCH_FR_BUFFER_SIZE": "2000",
}
# A launch that goes on where `submit` is called is none of a job's. Images of PyTorch under pyxis
# set these too, by a hook of enroot's (50-slurm-pytorch).
LAUNCHED = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
# Beside `defaults` and those of the site, what an image must not have its own values of.
_FROM_THE_JOB = (
    *("MEGATRON_VR_FAILED_NODES", "HF_TOKEN", "WANDB_API_KEY"),
    *("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", "TORCH_FR_DUMP_TEMP_FILE"),
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Rendered:
    """What a script is made from; see `render`."""

    job: Job
    files: RunFiles
    settings: Settings
    site: SiteSettings
    folder: Path
    python: Path
    name: str


def check(of: Rendered) -> None:
    """Raise SettingsError for what no script can hold, or what would never end."""
    job, cluster = of.job, of.settings.cluster
    for variable in (*of.site.environment, of.settings.engine.servers.api_key_variable):
        if not _VARIABLE.fullmatch(variable):
            raise SettingsError(f"{variable!r} is no name of an environment variable")
    if cluster.save_seconds > LARGEST_SAVE_SECONDS:
        raise SettingsError(
            f"cluster.save_seconds is {cluster.save_seconds}; Slurm's largest is "
            f"{LARGEST_SAVE_SECONDS}"
        )
    if 0 < slurm_seconds(job.shape.time) <= cluster.save_seconds:
        raise SettingsError(
            f"{job.name}: with a time limit of {job.shape.time} it would be told to save at once "
            f"(cluster.save_seconds is {cluster.save_seconds}); raise the limit, or lower that"
        )


def defaults(job: Job) -> dict[str, str]:
    """Variables that `job` sets where they are not set."""
    return ALWAYS | (WITH_GPUS if job.shape.gpus else {})


def options(of: Rendered) -> list[str]:
    """What follows each #SBATCH, quoted; later ones go before earlier ones."""
    shape, site = of.job.shape, of.site
    # sbatch replaces what follows a percent sign, here only the job's number.
    log = str(of.files.log(of.job, "\0")).replace("%", "%%").replace("\0", "%j")
    asked = {
        "job-name": of.name,
        "output": log,
        "open-mode": "append",
        "chdir": of.folder,
        "nodes": shape.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": shape.cpus,
        "mem": _memory(of),
        "time": shape.time,
        "partition": shape.partition or (site.gpu_partition if shape.gpus else site.cpu_partition),
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "signal": f"B:USR1@{of.settings.cluster.save_seconds}",
        "kill-on-invalid-dep": "yes",
        # The tokens and keys of who submits reach the job so, and are in no file.
        "export": "ALL",
        # A login node's limits, as on locked memory, are none of a job's.
        "propagate": "NONE",
    }
    told = [f"--{key}={shlex.quote(str(v))}" for key, v in asked.items() if v is not None]
    told.append("--requeue")
    if shape.gpus:
        told += shlex.split(site.gpu_request.replace("{gpus}", str(shape.gpus)))
        told += ["--exclusive"] if site.exclusive else []
    told += [*site.flags, *shape.flags]
    for option in told:
        if len(option.splitlines()) > 1:
            raise SettingsError(f"{of.job.name}: sbatch takes no line end, as in {option!r}")
    return told


def _memory(of: Rendered) -> str | None:
    """All of a whole node's, unless the settings say otherwise: Slurm's default is for one core.

    None where a flag asks for memory in another way: sbatch takes one of them.
    """
    if any(flag.startswith("--mem") for flag in (*of.site.flags, *of.job.shape.flags)):
        return None
    whole = of.site.exclusive and of.job.shape.gpus > 0
    return "0" if of.job.shape.memory is None and whole else of.job.shape.memory


def srun_flags(of: Rendered) -> list[str]:
    """Flags of every step, besides those in the template."""
    flags = []
    if of.job.shape.cpus is not None:
        # Since Slurm 22.05 steps do not take it from the job.
        flags.append(f"--cpus-per-task={of.job.shape.cpus}")
    container = of.site.container
    if container.kind == "pyxis":
        flags += [
            f"--container-image={container.image}",
            f"--container-mounts={','.join(_mounts(of))}",
            f"--container-workdir={of.folder}",
            f"--container-env={','.join(_container_variables(of))}",
            *container.flags,
        ]
    return flags


def command(of: Rendered) -> str:
    """The words of a shell array that calls megatron-vr."""
    container = of.site.container
    usual = "megatron-vr"
    if container.kind == "none":
        usual = shlex.join([str(of.python), "-m", "megatron_vr"])
    words = of.site.command or usual
    if container.kind == "none":
        return words
    # In the container: what is unset outside may be set again on the way.
    words = shlex.join(["env", *(word for name in LAUNCHED for word in ("-u", name))]) + f" {words}"
    if container.kind == "pyxis":
        return words
    outer = [
        *("apptainer", "exec", *(["--nv"] if of.job.shape.gpus else []), "--pwd", str(of.folder)),
        *(word for mount in _mounts(of) for word in ("--bind", mount)),
        *container.flags,
        str(container.image),
    ]
    return f"{shlex.join(outer)} {words}"


def _container_variables(of: Rendered) -> tuple[str, ...]:
    """Whose values in the image those of the job replace; pyxis passes over what is not set."""
    key = of.settings.engine.servers.api_key_variable
    names = (*defaults(of.job), *of.site.environment, *_FROM_THE_JOB, key)
    return tuple(dict.fromkeys(names))


def _mounts(of: Rendered) -> tuple[str, ...]:
    """Also the run's folder and the working folder, at their own places."""
    for path in (of.files.run, of.folder):
        if re.search(r"[:,\n]", str(path)):
            raise SettingsError(
                f"containers cannot mount {str(path)!r}: give it a path without colons and commas"
            )
    own = [f"{path}:{path}" for path in (of.files.run, of.folder)]
    return tuple(dict.fromkeys([*own, *of.site.container.mounts]))
