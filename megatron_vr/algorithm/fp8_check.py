"""`--fp8-check`: the first steps of a training in bfloat16 and in FP8, side by side.

`fp8-check.json` and `fp8-check.png` go into the training's folder, and nothing else there changes:
no checkpoint, metrics or examples are written. `fp8-check/` keeps the half in bfloat16 for the
next check of the same training, as with another recipe.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.megatron import open_megatron
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.runner import check_inputs
from megatron_vr.algorithm.stages.train import job_of, make_examples
from megatron_vr.errors import SettingsError
from megatron_vr.models.parts import installed
from megatron_vr.report.fp8_check import draw_check
from megatron_vr.traces.durable import write_bytes_durably, write_durably
from megatron_vr.traces.fingerprint import differences
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.checked import Checked
from megatron_vr.training.first_steps import FirstSteps, check_steps, first_steps
from megatron_vr.training.job import TrainJob

RESULT, PICTURE, KEPT = "fp8-check.json", "fp8-check.png", "fp8-check"
REFERENCE = "bfloat16"
# Of a training's settings, what no step depends on.
_OF_NO_STEP = {"save_every", "save_aside", "keep_last", "keep_every", "not_finite", "skips_allowed"}


@dataclass(frozen=True)
class Fp8Asked:
    """How many steps are compared, and the gap of the losses that is allowed, as a share."""

    steps: int
    gap: float


def check_fp8_asked(node: Node) -> None:
    """Raise SettingsError where the training of `node` has no FP8."""
    if node.settings.model.fp8 is None:
        raise SettingsError(
            "--fp8-check compares FP8 with bfloat16, but model.fp8 is not set; name a recipe, as "
            "in model.fp8=tensorwise, or leave the option out"
        )


def fp8_check(node: Node, context: Context, asked: Fp8Asked) -> Checked:
    """Check the training of `node`; every process calls it, and gets the same.

    Raises SettingsError where the training has fewer steps, StageError where its inputs are not
    done or another process works in its folder, Requeue when asked to stop.
    """
    check_fp8_asked(node)
    check_inputs(node)
    with node.folder.lock() if context.world.is_main else nullcontext():
        if context.world.is_main:
            node.folder.open()
            (node.path / KEPT).mkdir(exist_ok=True)
        examples = _examples(node, context)
        open_megatron(node.settings, context.world)
        tried = job_of(node, examples)
        reference = replace(tried, model=tried.model.model_copy(update={"fp8": None}))
        return compare_jobs(reference, tried, (REFERENCE, _name(node)), context, asked)


def _name(node: Node) -> str:
    fp8 = node.settings.model.fp8
    return f"FP8 {fp8.recipe} {fp8.number_format}" if fp8 is not None else REFERENCE


def _examples(node: Node, context: Context) -> pa.Table:
    """Those of the training, made anew where it has not begun."""
    if context.world.from_main(not node.folder.missing(1)):
        return node.folder.read_parts(1, EXAMPLES)
    file = node.path / KEPT / "examples.parquet"
    if context.world.is_main:
        pq.write_table(make_examples(node, context), file)
    context.world.barrier()
    return pq.read_table(file).cast(EXAMPLES)


def compare_jobs(
    reference: TrainJob, tried: TrainJob, names: tuple[str, str], context: Context, asked: Fp8Asked
) -> Checked:
    """The first steps of both, one after the other, the reference's only where they are not kept.

    Written into the folder of `tried`. Every rank of Megatron's groups calls it.
    """
    check_steps(tried, asked.steps)
    folder = tried.folder
    kept = folder / KEPT / f"{names[0]}.json"
    if context.world.is_main:
        kept.parent.mkdir(parents=True, exist_ok=True)
        for stale in (RESULT, PICTURE):
            (folder / stale).unlink(missing_ok=True)
    identity = _identity(reference, asked.steps, context.world.size)
    first = context.world.from_main(_read(kept, identity, context))
    if first is None:
        first = _half(reference, names[0], context, asked.steps)
        if context.world.is_main:
            content = {"of": identity, "made": first.as_json()}
            write_durably(kept, json.dumps(content, indent=1) + "\n")
    second = _half(tried, names[1], context, asked.steps)
    # Times are each rank's own.
    checked = context.world.from_main(Checked(first, second, asked.gap))
    if context.world.is_main:
        write_bytes_durably(folder / PICTURE, draw_check(checked))
        write_durably(folder / RESULT, json.dumps(checked.as_json(), indent=1) + "\n")
    context.world.barrier()
    return checked


def read_check(folder: Path) -> Checked:
    """What the last check in the training's `folder` found."""
    return Checked.from_json(json.loads((folder / RESULT).read_text(encoding="utf-8")))


def _half(job: TrainJob, name: str, context: Context, steps: int) -> FirstSteps:
    with context.talk.bar(f"{job.name}: {name}", steps, "steps") as bar:
        return first_steps(
            job, steps, name, lambda metrics: bar(1), lambda: context.interrupt.requested
        )


def _read(file: Path, identity: dict[str, Any], context: Context) -> FirstSteps | None:
    """The half in `file`, on the main process and where it was made of the same."""
    if not context.world.is_main or not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    name = file.stem
    changed = differences(content["of"], identity)
    if changed:
        context.talk.line(f"  {name} is run again: {'; '.join(changed[:3])}")
        return None
    context.talk.line(f"  {name}: done before, kept in {file}")
    return FirstSteps.from_json(content["made"])


def _identity(job: TrainJob, steps: int, processes: int) -> dict[str, Any]:
    """What the first steps of `job`, and their times, depend on. JSON."""
    settings = job.settings.model_dump(mode="json")
    content = {
        "steps": steps,
        "settings": {key: value for key, value in settings.items() if key not in _OF_NO_STEP},
        "model": job.model.model_dump(mode="json"),
        "layout": asdict(job.layout),
        "processes": processes,
        "overlap": job.overlap,
        "seed": job.seed,
        "examples": _digest(job.examples),
        "start_model": {
            file.name: [file.stat().st_size, file.stat().st_mtime_ns]
            for file in sorted(job.start_model.iterdir())
        },
        **_machine(),
    }
    return dict(json.loads(json.dumps(content)))


def _digest(examples: pa.Table) -> str:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, examples.schema) as writer:
        writer.write_table(examples.combine_chunks())
    return hashlib.sha256(stream.getvalue()).hexdigest()[:16]


def _machine() -> dict[str, str]:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    packages = ("torch", "megatron-core", "transformer-engine")
    return {"device": device} | {name: installed(name) or "none" for name in packages}
