"""What the card can do: the rates that MFU and conversions are told against."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

import torch
from torch import Tensor

from tools.bench.on_gpu.place import NotHere, Place, Row
from tools.bench.on_gpu.timing import median_seconds

# The square product whose rate is the reference, and a layer's own: a micro-batch through the
# first projection of the 8B shape's MLP.
SQUARE = (8192, 8192, 8192)
LAYER = (32768, 24576, 4096)
TINY = (64, 64, 64)


def measure(case: str, place: Place) -> Iterator[Row]:
    """One of the cases of the part `rate`."""
    if case == "card":
        yield card(place)
        return
    if case == "memory copy":
        yield copy(place)
        return
    work = {"bf16 products": bf16, "fp8 products": fp8}[case]
    for name, size in (("square", SQUARE), ("layer", LAYER)):
        yield work(name, place.sized(size, TINY), place)


def card(place: Place) -> Row:
    """The device as torch and the driver see it."""
    if place.rehearse:
        return Row("card", {"name": "CPU", "torch_cuda": None})
    found = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    values = {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": total / 2**30,
        "free_gib": free / 2**30,
        "torch_cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    return Row("card", values | _driver())


def _driver() -> dict[str, str]:
    """What nvidia-smi says; nothing without it."""
    if shutil.which("nvidia-smi") is None:
        return {}
    fields = ("driver_version", "power.limit", "clocks.sm", "clocks.max.sm", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=20)
    if done.returncode:
        return {"nvidia-smi": done.stderr.strip() or done.stdout.strip()}
    return dict(zip(fields, done.stdout.strip().split(", "), strict=False))


def bf16(name: str, size: tuple[int, int, int], place: Place) -> Row:
    """[m, k] × [k, n] of random bfloat16."""
    m, n, k = size
    left, right = _random(m, k, place), _random(n, k, place)
    seconds = median_seconds(lambda: torch.mm(left, right.t()), place)
    return _product(name, size, seconds)


def fp8(name: str, size: tuple[int, int, int], place: Place) -> Row:
    """The same of e4m3 with one scale a tensor, summed as fast as the card can; bfloat16 out."""
    if not hasattr(torch, "_scaled_mm"):
        raise NotHere("this torch has no _scaled_mm")
    m, n, k = size
    left, right = (_random(rows, k, place).to(torch.float8_e4m3fn) for rows in (m, n))
    one = torch.ones((), device=place.device)

    def work() -> Tensor:
        if place.rehearse:
            return torch.mm(left.bfloat16(), right.bfloat16().t())
        return torch._scaled_mm(
            left, right.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    return _product(name, size, median_seconds(work, place))


def _random(rows: int, columns: int, place: Place) -> Tensor:
    generator = torch.Generator(place.device).manual_seed(rows + columns)
    shape = (rows, columns)
    drawn = torch.randn(shape, generator=generator, device=place.device, dtype=torch.bfloat16)
    return drawn


def _product(name: str, size: tuple[int, int, int], seconds: float) -> Row:
    m, n, k = size
    shape = f"[{m}, {k}] × [{k}, {n}]"
    return Row(name, {"tflops": 2 * m * n * k / seconds / 1e12, "seconds": seconds, "shape": shape})


def copy(place: Place) -> Row:
    """From the card's memory to the card's memory; what is read and what is written count."""
    count = place.sized(2**31, 2**20)
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), place)
    return Row("copy", {"tb_per_s": 2 * count / seconds / 1e12, "bytes": count, "seconds": seconds})
