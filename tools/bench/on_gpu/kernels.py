"""Where a step spends the device's time, by kind of kernel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from tools.bench.on_gpu.place import Place, Row

# The first whose words a kernel's name has.
KINDS: Final = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "dot_product")),
    ("products", ("gemm", "cutlass", "nvjet", "cublas", "matmul", "xmma")),
    ("FP8 casts and transposes", ("quantize", "cast", "transpose", "amax", "fp8", "scale")),
    ("norms", ("norm",)),
    ("rotary positions", ("rope", "rotary")),
    ("SwiGLU", ("swiglu", "silu", "gated", "glu")),
    ("optimizer", ("adam", "multi_tensor", "l2norm")),
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
    times: Counter[str] = Counter()
    for event in found.key_averages():
        # What launched a kernel is told of its time too.
        if place.rehearse:
            times[event.key] += event.self_cpu_time_total / 1e6
        elif event.device_type.name == "CUDA":
            times[event.key] += event.self_device_time_total / 1e6
    return Row(name, shares(times.items()))


def shares(times: Iterable[tuple[str, float]]) -> dict[str, Any]:
    """Seconds by kind, and of the kernels that take longest."""
    counted = Counter(dict(times))
    kinds: Counter[str] = Counter()
    for kernel, seconds in counted.items():
        kinds[kind_of(kernel)] += seconds
    return {
        "device_seconds": sum(counted.values()),
        "kinds": dict(kinds.most_common()),
        "kernels": [
            {"kernel": name[:160], "seconds": seconds}
            for name, seconds in counted.most_common(MOST_KERNELS)
        ],
    }


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    lower = kernel.lower()
    for kind, words in KINDS:
        if any(word in lower for word in words):
            return kind
    return "everything else"
