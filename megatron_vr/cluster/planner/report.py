"""What a plan says, as data: memory, speed, hours, disk, and other layouts. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.disk import Disk
from megatron_vr.cluster.planner.hardware import GIB, Device
from megatron_vr.cluster.planner.host import HostMemory
from megatron_vr.cluster.planner.lengths import PlanAssumptions
from megatron_vr.cluster.planner.memory import Memory
from megatron_vr.cluster.planner.search import Candidate
from megatron_vr.cluster.planner.stage_times import Estimate
from megatron_vr.cluster.planner.work import Counts
from megatron_vr.config.fp8_settings import Fp8Settings

PARTS = ("weights", "gradients", "optimizer", "activations", "head", "buffers")


@dataclass(frozen=True)
class Fit:
    """Memory of one training or of scoring on each GPU; `largest` micro_batch_tokens that fit (of
    trainings), and a node's own memory at their saves."""

    name: str
    case: Case
    memory: Memory
    limit: int
    largest: int | None
    host: HostMemory | None

    @property
    def fits(self) -> bool:
        """Whether all of it has room on the device."""
        return self.memory.total <= self.limit

    @property
    def verdict(self) -> str:
        """In words, with what to do."""
        gib = abs(self.limit - self.memory.total) / GIB
        if self.fits:
            return f"fits, {gib:.1f} GiB free"
        told = f"does not fit, {gib:.1f} GiB too much"
        if self.largest is not None:
            return f"{told}: micro_batch_tokens of {self.largest:,} would"
        return f"{told} with any micro-batch: split or recompute more (--search), or more GPUs"


@dataclass(frozen=True)
class Report:
    """A whole plan. `notes` say what was measured instead of assumed.

    `layouts` are those of `train` that fit, where they were searched for. With a `layout_fault`,
    the settings' own layout is none, and there are no fits and estimates of it.
    """

    model: str
    parameters: int
    device: Device
    fits: Sequence[Fit]
    estimates: Sequence[Estimate]
    disk: Disk
    assumed: PlanAssumptions
    counts: Counts
    notes: Sequence[str]
    layouts: Sequence[Candidate] | None
    layout_fault: str | None = None

    @property
    def faults(self) -> list[str]:
        """Why the run would not get through; empty where it fits."""
        found = [] if self.layout_fault is None else [self.layout_fault]
        found += [f"{fit.name}: {fit.verdict}" for fit in self.fits if not fit.fits]
        found += [
            f"{fit.name}: {fit.host.fault}" for fit in self.fits if fit.host and fit.host.fault
        ]
        return found + [f"{one.name}: {one.fault}" for one in self.estimates if one.fault]

    @property
    def hours(self) -> float:
        """Of all jobs that are not done, one after the other."""
        return sum(one.seconds for one in self.estimates if not one.done) / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all jobs that are not done."""
        return sum(one.gpu_hours for one in self.estimates if not one.done)

    def as_json(self) -> dict[str, Any]:
        """The same for programs. Bytes, seconds and tokens a second."""
        return {
            "model": self.model,
            "parameters": self.parameters,
            "device": asdict(self.device),
            "fits": not self.faults,
            "faults": self.faults,
            "memory": [_fit(fit) for fit in self.fits],
            "stages": [_estimate(one) for one in self.estimates],
            "hours": self.hours,
            "gpu_hours": self.gpu_hours,
            "disk_gb": asdict(self.disk) | {"total": self.disk.total},
            "assumptions": self.assumed.model_dump(mode="json"),
            "questions": asdict(self.counts),
            "notes": list(self.notes),
            "layouts": None if self.layouts is None else [_layout(one) for one in self.layouts],
        }


def snippet(candidate: Candidate) -> str:
    """Settings (YAML) that make a run train as `candidate`."""
    case, layout = candidate.case, candidate.case.layout
    parallel = {
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "virtual_pipeline": layout.virtual_pipeline,
        "context": layout.context,
        "sequence": layout.sequence_parallel,
        "overlap": case.overlap,
    }
    told = {key: value for key, value in parallel.items() if value is not None}
    return (
        f"parallel: {_yaml(told)}\n"
        f"model: {{recompute: {case.recompute}, fp8: {_fp8(case.fp8)}}}\n"
        f"train: {{micro_batch_tokens: {case.micro_batch_tokens}}}"
    )


def _yaml(told: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key}: {str(value).lower()}" for key, value in told.items()) + "}"


def _fp8(fp8: Fp8Settings | None) -> str:
    """As `model.fp8` takes it: what is not a default."""
    if fp8 is None:
        return "null"
    told = fp8.model_dump(exclude_defaults=True)
    return fp8.recipe if set(told) == {"recipe"} else _yaml(told)


def _fit(fit: Fit) -> dict[str, Any]:
    return {
        "name": fit.name,
        "fits": fit.fits,
        "verdict": fit.verdict,
        "bytes": {part: getattr(fit.memory, part) for part in PARTS},
        "total": fit.memory.total,
        "limit": fit.limit,
        "moment": fit.memory.moment,
        "micro_batch_tokens": fit.case.micro_batch_tokens,
        "largest_micro_batch_tokens": fit.largest,
        "host_bytes_per_node": None if fit.host is None else fit.host.needed,
        "host_memory_asked": None if fit.host is None else fit.host.asked,
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    step = one.step
    return {
        "name": one.name,
        "stage": one.stage,
        "nodes": one.shape.nodes,
        "gpus": one.shape.gpus,
        "seconds": one.seconds,
        "time_limit": one.shape.time,
        "restarts": one.restarts,
        "gpu_hours": one.gpu_hours,
        "done": one.done,
        "basis": one.basis,
        "fault": one.fault,
        "step": None if step is None else _step(one),
    }


def _step(one: Estimate) -> dict[str, float]:
    step = one.step
    if step is None:
        raise AssertionError("asked of a stage without steps")
    return {
        "seconds": step.seconds,
        "tokens_per_second_per_gpu": step.tokens_per_gpu,
        "tflops_per_gpu": step.tflops,
        "mfu": step.mfu,
        "bubble": step.bubble / step.seconds,
    }


def _layout(one: Candidate) -> dict[str, Any]:
    return {
        "layout": asdict(one.case.layout),
        "data": one.case.data,
        "recompute": one.case.recompute,
        "fp8": None if one.case.fp8 is None else one.case.fp8.recipe,
        "micro_batch_tokens": one.case.micro_batch_tokens,
        "bytes": one.memory.total,
        "step_seconds": one.step.seconds,
        "tokens_per_second_per_gpu": one.step.tokens_per_gpu,
    }
