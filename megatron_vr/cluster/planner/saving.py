"""What a checkpoint's making takes, on the GPU and on the host. Pure.

`TrainingState.sharded` has Megatron gather the optimizer's state among the ranks that share it
(`DistributedOptimizer.get_parameter_state_dp_zero`), bucket by bucket, and returns it whole to
each of them, in host memory; `DeferredSave` then copies what the rank is to write.
"""

from __future__ import annotations

from megatron_vr.cluster.planner.sharding import Buffers

_FLOAT32 = 4

# Main weights and two moments.
_STATES = 3


def gathered_on_device(buffers: Buffers, ranks: int) -> int:
    """Bytes on the GPU while one state of the largest bucket is gathered among `ranks`: a rank's
    own part, the parts of all, and NCCL's flat copy of these."""
    return _FLOAT32 * (buffers.bucket // ranks + 2 * buffers.bucket)


def gathered_on_host(buffers: Buffers, ranks: int, item: int) -> int:
    """Bytes that one rank takes on the host: the larger of two moments.

    While a bucket is gathered: all states, the rank's own parts, and three times one state of the
    bucket (in parts, put together, and the state before it). While shards are set aside: all
    states, and the rank's part of states and weights.
    """
    whole = _STATES * _FLOAT32 * buffers.buffer
    gathering = _FLOAT32 * (_STATES * (buffers.bucket // ranks) + 3 * buffers.bucket)
    return max(whole + gathering, whole + set_aside(buffers, ranks, item))


def set_aside(buffers: Buffers, ranks: int, item: int) -> int:
    """Bytes that a rank keeps on the host until its shards are on the disk."""
    return buffers.parameters * (_STATES * _FLOAT32 + item) // ranks
