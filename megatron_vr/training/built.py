"""What a training was built from: `built.json` in its folder, and one line for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from megatron_vr.models.architecture import read_architecture
from megatron_vr.models.parts import Parts, find_parts
from megatron_vr.traces.durable import write_durably
from megatron_vr.traces.fingerprint import differences
from megatron_vr.training.job import TrainJob
from megatron_vr.training.resolved import Base, Resolved, described, resolved_training

BUILT = "built.json"

# Differences that are told in a line; the file has them all.
SHOWN = 6


def note_built(job: TrainJob) -> list[str]:
    """Write what `job` is built from, here and now, into its folder; lines that tell it.

    For one process. `earlier` in the file are those of attempts that were built from something
    else. Raises CheckpointError where the model to begin from has no readable `config.json`.
    """
    parts = find_parts()
    built = resolved_job(job, parts.on_gpu)
    now = {"versions": versions(parts), "resolved": built.as_json()}
    before = _before(job.folder / BUILT)
    lines = [f"{job.name}: {described(built, parts.transformer_engine)}"]
    changed = differences(before[-1], json.loads(json.dumps(now))) if before else []
    if changed:
        lines.append(f"{job.name}: it was begun with other parts: {_listed(changed)}")
    earlier = before if changed else before[:-1]
    job.folder.mkdir(parents=True, exist_ok=True)
    write_durably(job.folder / BUILT, json.dumps({**now, "earlier": earlier}, indent=1) + "\n")
    return lines


def resolved_job(job: TrainJob, on_gpu: bool) -> Resolved:
    """What `job` asks of Megatron and Transformer Engine."""
    return resolved_training(
        Base(job.model, read_architecture(job.start_model), job.layout, on_gpu),
        job.settings.optimizer,
        micro_batch_tokens=job.settings.micro_batch_tokens,
        overlap=job.overlap,
    )


def versions(parts: Parts) -> dict[str, Any]:
    """Of the installed `parts`, python and the device, as JSON has them."""
    found: Mapping[str, Any] = asdict(parts)
    told = {name: _plain(value) for name, value in found.items()}
    device = torch.cuda.get_device_name() if parts.on_gpu else "cpu"
    return {"python": platform.python_version(), "device": device, **told}


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _before(file: Path) -> list[dict[str, Any]]:
    """What earlier attempts were built from, the last one last."""
    if not file.exists():
        return []
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return [*content.pop("earlier"), content]


def _listed(changed: list[str]) -> str:
    return "; ".join(_shortened(changed))


def _shortened(changed: list[str]) -> Iterator[str]:
    yield from changed[:SHOWN]
    if len(changed) > SHOWN:
        yield f"and {len(changed) - SHOWN} more (see {BUILT})"
