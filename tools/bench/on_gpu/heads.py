"""The log-prob head against others at 32768 positions of 151936 tokens, forward and backward.

The functions are those of `tools.bench.head`. Liger's sum has no weight for each position (that
with `reduction="none"` has, and computes its products once more); ours has. Both add the weight's
gradient to the float32 buffer that training has anyway; Liger's own copy of it counts, and is told.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from megatron_vr.models.gpt import LOGITS_ON_CPU, LOGITS_ON_GPU
from tools.bench.harness import ratio
from tools.bench.head import Inputs, chunk_of, chunked, dense, liger, megatron, peak_bytes
from tools.bench.on_gpu.ours import form_groups_once
from tools.bench.on_gpu.place import NotHere, Place, Row

POSITIONS, VOCABULARY = 32768, 151936
LOGITS_BYTES = (2**28, 2**29, 2**30, 2**31)
MIB = 2**20
ROUNDS = 5

Head = Callable[[Inputs], None]


def measure(case: str, place: Place) -> Iterator[Row]:
    """One of the cases of the part `head`: a rival's name and the width of the hidden states."""
    name, width = case.rsplit(" ", 1)
    form_groups_once()
    positions, vocabulary = place.sized((POSITIONS, VOCABULARY), (64, 512))
    width_here = place.sized(int(width), 32)
    inputs = Inputs.random(positions, vocabulary, width_here, place.device)
    shape = f"{positions} × {vocabulary} × {width_here}"
    logits = place.sized(LOGITS_ON_GPU, LOGITS_ON_CPU)
    if name == "chunks":
        for size in LOGITS_BYTES:
            yield Row(f"{size // MIB} MiB", {"shape": shape, **alone(inputs, size)})
        return
    theirs = partial(_rival(name, place), inputs)
    ours = partial(chunked, inputs, chunk_of(inputs, logits))
    mine, other = ratio(ours, theirs, place.sized(ROUNDS, 1))
    own_gradient = 2 * inputs.weight.numel() if "Liger" in name else 0
    mine_peak, other_peak = _peak(inputs, ours), _peak(inputs, theirs)
    yield Row(
        "head",
        {
            "shape": shape,
            "ours_s": mine,
            "rival_s": other,
            "time_ratio": mine / other,
            "ours_mib": mine_peak / MIB,
            "rival_mib": other_peak / MIB,
            "memory_ratio": mine_peak / other_peak,
            "rival_without_its_weight_gradient_mib": (other_peak - own_gradient) / MIB,
        },
    )


def alone(inputs: Inputs, logits: int) -> dict[str, Any]:
    """Ours with at most `logits` bytes of logits at once."""
    chunk = chunk_of(inputs, logits)
    ours = partial(chunked, inputs, chunk)
    seconds, _ = ratio(ours, lambda: None, 3)
    return {"chunk": chunk, "seconds": seconds, "mib": _peak(inputs, ours) / MIB}


def weighted_liger(inputs: Inputs) -> None:
    """Liger's losses of each position, weighted as ours are."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    inputs.hidden.grad = inputs.weight.grad = None
    losses = LigerFusedLinearCrossEntropyLoss(reduction="none")(
        inputs.weight, inputs.hidden, inputs.labels
    )
    (losses * inputs.coefficients).sum().backward()
    inputs.weight.main_grad.add_(inputs.weight.grad)  # type: ignore[attr-defined]
    inputs.weight.grad = None


def _rival(name: str, place: Place) -> Head:
    if "Liger" in name and not place.rehearse and importlib.util.find_spec("liger_kernel") is None:
        raise NotHere("liger-kernel is not installed here")
    real = {"Liger": liger, "dense": dense, "weighted Liger": weighted_liger, "Megatron": megatron}
    # Liger's kernels need the GPU.
    return dense if place.rehearse else real[name]


def _peak(inputs: Inputs, work: Callable[[], None]) -> int:
    """Above inputs, weight and buffer; the gradient of the hidden states counts."""
    inputs.hidden.grad = None
    found = peak_bytes(work)
    inputs.hidden.grad = None
    return found
