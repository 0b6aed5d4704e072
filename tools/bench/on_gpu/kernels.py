"""Where a step spends the device's time, by kind of kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.on_gpu.place import Place, Row

# The first whose words a kernel's name has. `_row_sums` and `_overwrite` are the head's own; a
# compiled SwiGLU is named after its operations, copies among them; the optimizer's kernels for
# many tensors (l2norm, ScaleFunctor) have words of norms and casts.
KINDS: Final = (
    ("optimizer", ("adam", "multi_tensor", "l2norm")),
    ("attention", ("flash", "fmha", "sdpa", "attention", "dot_product")),
    ("head's softmax", ("_row_sums", "_overwrite")),
    ("products", ("gemm", "cutlass", "nvjet", "cublas", "matmul", "xmma")),
    ("SwiGLU", ("swiglu", "silu", "sigmoid", "gated", "glu")),
    ("rotary positions", ("rope", "rotary")),
    ("FP8 casts and transposes", ("quantize", "cast", "transpose", "amax", "fp8", "scale")),
    ("norms", ("norm",)),
    ("copies and zeros", ("memcpy", "memset", "copy", "fill")),
)
MOST_KERNELS = 25


def kernel_row(name: str, step: Callable[[], Any], place: Place) -> Row:
    """One step under torch's profiler, after one that warms up: shares of the device's time."""
    step()
    kinds = (
        [ProfilerActivity.CPU] if place.rehearse else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    )
    with profile(activities=kinds) as found:
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return Row(name, shares(kernel_times(found.key_averages(), place.device)))


def kernel_times(events: Iterable[Any], device: Literal["cuda", "cpu"]) -> list[tuple[str, float]]:
    """Name and seconds of what ran on the device; on a CPU, of the operations.

    What launched a kernel is told of its time too, and so are the stretches that a library named
    (`Optimizer.step#…`, `nccl:…`): neither counts.
    """
    if device == "cpu":
        return [(event.key, event.self_cpu_time_total / 1e6) for event in events]
    return [
        (event.key, event.self_device_time_total / 1e6)
        for event in events
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    ]


def shares(times: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """Seconds by kind, and of the kernels that take longest."""
    counted: defaultdict[str, float] = defaultdict(float)
    kinds: defaultdict[str, float] = defaultdict(float)
    for kernel, seconds in times:
        counted[kernel] += seconds
        kinds[kind_of(kernel)] += seconds
    return {
        "device_seconds": sum(counted.values()),
        "kinds": dict(_longest(kinds)),
        "kernels": [
            {"kernel": name[:160], "seconds": seconds}
            for name, seconds in _longest(counted)[:MOST_KERNELS]
        ],
    }


def _longest(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda pair: -pair[1])


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    # Torch's elementwise kernels say so of any operand of another type.
    lower = kernel.lower().replace("loadwithcast", "").replace("storewithcast", "")
    for kind, words in KINDS:
        if any(word in lower for word in words):
            return kind
    return "everything else"
