"""Memory and time of the log-prob head, forward and backward, against the dense softmax.

    python -m tools.bench.head

The head is run as in training: the loss's weights are known, and the output weight has the buffer
that Megatron sums gradients in. Memory is the peak above inputs, weight and that buffer, over the
size of the fp32 logits. The dense version is `cross_entropy` of all logits. On a GPU Liger's fused
linear cross-entropy and Megatron's own path (all logits, vocab-parallel cross-entropy) run too,
where they are installed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy

from megatron_vr.models.gpt import LOGITS_ON_CPU, LOGITS_ON_GPU
from megatron_vr.models.log_prob import ChunkedLogProb
from megatron_vr.models.vocabulary import VocabularyShard
from tools.bench.harness import Result, form_groups, ratio, show

MIB = 2**20


@dataclass(frozen=True)
class Inputs:
    """Leaves [positions, hidden] and [vocabulary, hidden], labels and loss weights [positions]."""

    hidden: Tensor
    weight: Tensor
    labels: Tensor
    coefficients: Tensor

    @staticmethod
    def random(positions: int, vocabulary: int, width: int, device: str) -> Inputs:
        generator = torch.Generator(device).manual_seed(0)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        hidden = torch.randn(positions, width, generator=generator, device=device, dtype=dtype)
        weight = torch.randn(vocabulary, width, generator=generator, device=device, dtype=dtype)
        labels = torch.randint(0, vocabulary, (positions,), generator=generator, device=device)
        coefficients = torch.rand(positions, generator=generator, device=device)
        inputs = Inputs(
            hidden.requires_grad_(), (weight * 0.02).requires_grad_(), labels, coefficients
        )
        inputs.weight.main_grad = torch.zeros_like(inputs.weight, dtype=torch.float32)  # type: ignore[attr-defined]
        return inputs


def chunk_of(inputs: Inputs, logits: int) -> int:
    """Positions that the head projects at once for `logits` bytes: on a GPU they stay as the
    product leaves them, elsewhere they are float32."""
    weight = inputs.weight
    item = weight.element_size() if weight.is_cuda else torch.float32.itemsize
    return max(1, logits // (weight.shape[0] * item))


def chunked(inputs: Inputs, chunk: int) -> None:
    """Ours."""
    rows = inputs.weight.shape[0]
    shard = VocabularyShard(dist.group.WORLD, rows, rows)
    inputs.hidden.grad = None
    inputs.weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    log_probs = ChunkedLogProb.apply(
        inputs.hidden, inputs.weight, inputs.labels, shard, chunk, inputs.coefficients
    )
    (log_probs * inputs.coefficients).sum().backward()
    inputs.weight.grad = None


def dense(inputs: Inputs) -> None:
    """All logits, then the softmax, the weight's gradient added to the same buffer."""
    inputs.hidden.grad = inputs.weight.grad = None
    logits = inputs.hidden @ inputs.weight.t()
    losses = cross_entropy(logits.float(), inputs.labels, reduction="none")
    del logits
    (-losses * inputs.coefficients).sum().backward()
    inputs.weight.main_grad.add_(inputs.weight.grad)  # type: ignore[attr-defined]
    inputs.weight.grad = None


def megatron(inputs: Inputs) -> None:
    """Megatron's own: all logits of the linear layer, and its vocab-parallel cross-entropy."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    inputs.hidden.grad = inputs.weight.grad = None
    logits = (inputs.hidden @ inputs.weight.t())[:, None]
    losses = vocab_parallel_cross_entropy(logits.float(), inputs.labels[:, None])[:, 0]
    del logits
    (-losses * inputs.coefficients).sum().backward()
    inputs.weight.main_grad.add_(inputs.weight.grad)  # type: ignore[attr-defined]
    inputs.weight.grad = None


def liger(inputs: Inputs) -> None:
    """Liger's fused linear cross-entropy; it knows no weight per position, so it has none."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    inputs.hidden.grad = inputs.weight.grad = None
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    loss(inputs.weight, inputs.hidden, inputs.labels).backward()
    inputs.weight.main_grad.add_(inputs.weight.grad)  # type: ignore[attr-defined]
    inputs.weight.grad = None


def peak_bytes(work: Callable[[], None]) -> int:
    """The most memory that `work` held above what was there before; for a CPU, Linux only."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # What was freed before must not be taken for free room.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (kib,) = (int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return kib * 1024


def rivals() -> dict[str, Callable[[Inputs], None]]:
    """What is compared on this machine."""
    found: dict[str, Callable[[Inputs], None]] = {"dense": dense}
    if torch.cuda.is_available():
        found["Megatron's own path"] = megatron
        if importlib.util.find_spec("liger_kernel") is not None:
            found["Liger"] = liger
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151936)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1, help="measured passes of each")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    form_groups()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = Inputs.random(options.positions, options.vocabulary, options.width, device)
    memory = LOGITS_ON_GPU if device == "cuda" else LOGITS_ON_CPU
    chunk = chunk_of(inputs, memory)

    def ours() -> None:
        chunked(inputs, chunk)

    logits = 4 * options.positions * options.vocabulary
    # First, so that no earlier pass left room in the allocator.
    used = peak_bytes(ours)
    detail = f"{used / MIB:.0f} MiB of {logits / MIB:.0f}; {chunk} positions at once"
    results = [Result("peak memory over the fp32 logits", used / logits, "< 0.05", detail)]
    for name, rival in rivals().items():
        theirs = lambda rival=rival: rival(inputs)  # noqa: E731
        mine, other = ratio(ours, theirs, options.rounds)
        goal = "≤ 1.15" if name == "dense" else ""
        detail = f"{mine:.3g} s against {other:.3g} s"
        results.append(Result(f"time over {name}", mine / other, goal, detail))
        other_peak = peak_bytes(theirs) / logits
        results.append(Result(f"peak memory of {name} over the logits", other_peak, ""))
    shape = f"{options.positions} × {options.vocabulary} × {options.width}"
    show(f"log-prob head, {shape}, {device}", results, options.json)


if __name__ == "__main__":
    main()
