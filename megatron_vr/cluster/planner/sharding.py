"""Megatron's buffers of parameters and gradients, and their shards in the optimizer. Pure.

The rules are those of `megatron.core.distributed.param_and_grad_buffer` with a distributed
optimizer: parameters in reverse order, each at a multiple of 64, in buckets that end at a multiple
of lcm(ranks, 128) and are cut evenly among the ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from megatron_vr.cluster.planner.parameters import Parameter, stage_parameters, stages_of
from megatron_vr.models.architecture import Architecture
from megatron_vr.parallel.layout import Layout

_START, _END = 64, 128

# DistributedDataParallel's own: at least so many numbers in a bucket, and this many for each rank.
_BUCKET, _BUCKET_PER_RANK = 40_000_000, 1_000_000


@dataclass(frozen=True)
class Buffers:
    """Numbers on one rank of a pipeline stage, all its chunks together.

    `parameters` as such, of which the products of `matrices` are in FP8; `buffer` with padding, of
    which `in_fp8` are kept in FP8 alone; `bucket` the largest of all buckets; `shard` in the
    optimizer of the data-parallel rank that has most.
    """

    parameters: int
    matrices: int
    buffer: int
    in_fp8: int
    shard: int
    bucket: int


@dataclass(frozen=True)
class _Bucket:
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]


@lru_cache(maxsize=4096)
def buffers_of(
    architecture: Architecture,
    layout: Layout,
    data: int,
    rank: int,
    overlap: bool,
    fp8_layers: range = range(0),
    fp8_params: bool = False,
) -> Buffers:
    """The buffers of pipeline rank `rank`, `data` copies of the model being trained.

    The matrix products of `fp8_layers` are in FP8; with `fp8_params` so are their weights, which
    then have a buffer of their own.
    """
    ranks = data * layout.context
    held: list[Parameter] = []
    usual: list[_Bucket] = []
    in_fp8: list[_Bucket] = []
    for stage in stages_of(layout, rank):
        parameters = stage_parameters(architecture, layout, stage)
        held.extend(parameters)
        cut = overlap and stage.rank == 0 and stage.chunk == 0
        size = max(_BUCKET, _BUCKET_PER_RANK * data) if cut else None
        apart = [p for p in parameters if fp8_params and p.matrix in fp8_layers]
        in_fp8.extend(_buckets(apart, ranks, size))
        rest = [p for p in parameters if not (fp8_params and p.matrix in fp8_layers)]
        usual.extend(_buckets(rest, ranks, size))
    buckets = [*usual, *in_fp8]
    return Buffers(
        parameters=sum(parameter.count for parameter in held),
        matrices=sum(p.count for p in held if p.matrix in fp8_layers),
        buffer=_numbers(buckets),
        in_fp8=_numbers(in_fp8),
        shard=max(_shards(buckets, ranks)),
        bucket=max(bucket.end - bucket.start for bucket in buckets),
    )


def _numbers(buckets: Sequence[_Bucket]) -> int:
    return sum(bucket.end - bucket.start for bucket in buckets)


def _padded(place: int, multiple: int) -> int:
    return -(-place // multiple) * multiple


def _buckets(parameters: Sequence[Parameter], ranks: int, size: int | None) -> list[_Bucket]:
    multiple = math.lcm(ranks, _END)
    found: list[_Bucket] = []
    spans: list[tuple[int, int]] = []
    first = place = 0

    def close(end: int) -> int:
        nonlocal first
        found.append(_Bucket(first, _padded(end, multiple), tuple(spans)))
        spans.clear()
        first = found[-1].end
        return first

    for parameter in reversed(parameters):
        place = _padded(place, _START)
        if parameter.shared and spans:
            place = close(place)
        spans.append((place, place + parameter.count))
        place += parameter.count
        if parameter.shared or (size is not None and place - first >= size):
            place = close(place)
    if spans:
        close(place)
    return found


def _shards(buckets: Sequence[_Bucket], ranks: int) -> list[int]:
    """Numbers of parameters (padding is in no optimizer) that each rank's shards hold."""
    held = [0] * ranks
    for bucket in buckets:
        length = (bucket.end - bucket.start) // ranks
        for start, end in bucket.spans:
            place = start
            while place < end:
                rank = (place - bucket.start) // length
                upto = min(end, bucket.start + (rank + 1) * length)
                held[rank] += upto - place
                place = upto
    return held
