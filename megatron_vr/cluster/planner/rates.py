"""What share of a device's figures is reached: few numbers, each with where it is from.

`Rates` was fitted to the points of tests/cluster/planner/published.yaml that say `calibrates`, the
others were not looked at for it; docs/planner.md has the errors of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class TrainRates:
    """Of training and scoring.

    `product` and `fp8_product` are the shares of the peak that a large matrix product reaches; one
    of sizes m, n, k takes (1 + small (1/m + 1/n + 1/k)) times as long. `attention_*` are the shares
    of the bfloat16 peak of the attention kernel, whose backward pass has 5 products for the forward
    pass's 2. `memory`, `nvlink` and `network` are shares of bandwidth. `exposed_*` are the shares
    of a communication that computation does not hide: of tensor parallelism where the framework
    overlaps it (this one does not), of gradients and weights with parallel.overlap, and of what
    interleaved pipelines send. `host` are the seconds in which the CPU can start one layer's
    kernels. `lost` is the share of a step in no other term: uneven ranks, data, logging.
    """

    product: float = 0.76
    fp8_product: float = 0.64
    small: float = 128.0
    attention_forward: float = 0.60
    attention_backward: float = 0.50
    memory: float = 0.80
    nvlink: float = 0.75
    network: float = 0.80
    exposed_tensor: float = 0.3
    exposed_data: float = 0.2
    exposed_pipeline: float = 0.25
    host: float = 3e-4
    lost: float = 0.03


@dataclass(frozen=True)
class DecodeRates:
    """Of rollout servers (vLLM, SGLang).

    One decoding step of B sequences takes `step` + B · `sequence` seconds on the host, reads the
    weights at the share `weights` of the memory's bandwidth or computes at the share `product` of
    the peak, whichever is slower, and reads the caches at the share `cache`. With tensor
    parallelism each layer sums twice over the GPUs: `hop` seconds and the bytes. `reserved` is the
    share of the device's memory that servers take, `workspace_gib` of it for no weight or cache.
    """

    step: float = 2.0e-3
    sequence: float = 3.5e-5
    weights: float = 0.80
    cache: float = 0.90
    product: float = 0.70
    prefill: float = 0.50
    hop: float = 1.5e-5
    nvlink: float = 0.5
    reserved: float = 0.90
    workspace_gib: float = 4.0


TRAIN: Final = TrainRates()
DECODE: Final = DecodeRates()
