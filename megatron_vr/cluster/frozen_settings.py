"""The settings that all jobs of a run read: a copy, so that editing the file changes no job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from megatron_vr.cluster.job import RunFiles
from megatron_vr.config.settings import Settings
from megatron_vr.errors import StageError
from megatron_vr.traces.durable import write_durably
from megatron_vr.traces.fingerprint import differences

HEADER = (
    "# What the jobs of this run read. Written by `megatron-vr submit`; edit the run's own file.\n"
)


def check_frozen(settings: Settings, files: RunFiles, live: Sequence[str]) -> None:
    """Raise StageError where jobs are `live` that read other settings than these."""
    if not live or not files.settings.exists():
        return
    before = yaml.safe_load(files.settings.read_text(encoding="utf-8"))
    changes = differences(_read_by_jobs(before), _read_by_jobs(settings.model_dump(mode="json")))
    if changes:
        raise StageError(
            f"jobs of this run are queued with other settings ({'; '.join(changes)}): "
            f"{', '.join(live)}. Put the settings back, or end them first: "
            f"`megatron-vr cancel {files.run}`"
        )


def _read_by_jobs(content: dict[str, Any]) -> dict[str, Any]:
    """Shapes, limits and restarts stand in the scripts: the jobs do not look at these settings."""
    meet = content.get("cluster", {}).get("meet_seconds")
    return {**content, "cluster": {"meet_seconds": meet}}


def freeze(settings: Settings, files: RunFiles) -> None:
    """Write the settings for the jobs, durably."""
    content = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    files.folder.mkdir(parents=True, exist_ok=True)
    write_durably(files.settings, HEADER + content)
