"""What one cluster asks of every job: account, partitions, containers, modules."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from megatron_vr.config.frozen import Frozen


class ContainerSettings(Frozen):
    """What every command of a job runs in."""

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = Field(None, description="file (.sqsh, .sif) or address of the image")
    mounts: tuple[str, ...] = Field((), description="as in /data:/data")
    flags: tuple[str, ...] = Field((), description="more of srun's (pyxis) or apptainer's own")

    @model_validator(mode="after")
    def _image_where_needed(self) -> ContainerSettings:
        if (self.kind == "none") != (self.image is None):
            raise ValueError(
                f"container.kind is {self.kind}: give an image with pyxis or apptainer"
            )
        return self


class SiteSettings(Frozen):
    """A site file: what people of one cluster share. `submit --site FILE`, or MEGATRON_VR_SITE."""

    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    gpu_partition: str | None = Field(None, description="of jobs with GPUs; null: the default one")
    cpu_partition: str | None = Field(None, description="of jobs without; null: the default one")
    gpu_request: str = Field(
        "--gpus-per-node={gpus}", description="how GPUs are asked for, as in --gres=gpu:h100:{gpus}"
    )
    exclusive: bool = Field(False, description="whole nodes for jobs with GPUs")
    flags: tuple[str, ...] = Field((), description="more of sbatch's own, for every job")
    srun_flags: tuple[str, ...] = Field((), description="more of srun's own, for every step")
    modules: tuple[str, ...] = Field((), description="`module load` before anything runs")
    setup: str = Field("", description="shell lines before anything runs, on each job's first node")
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables of every job, as NCCL_SOCKET_IFNAME"
    )
    container: ContainerSettings = ContainerSettings()
    command: str | None = Field(
        None,
        description="how jobs call megatron-vr; null: this Python, or `megatron-vr` in a container",
    )
    templates: Path | None = Field(
        None, description="folder of templates that take the place of those shipped (slurm/)"
    )
