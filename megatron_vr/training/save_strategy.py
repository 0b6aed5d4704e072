"""How a sharded checkpoint reaches the disk: written by the training process itself.

Megatron's own strategy writes through a `spawn`ed manager and `fork`ed writers even for a
synchronous save. The manager imports the main module anew (seconds, and a hang where that module
has no main guard), and forking a process with running threads may deadlock. Here the same state
dict goes through torch's distributed checkpoint writer; the files are the same format.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.strategies.fully_parallel import (
    FullyParallelSaveStrategyWrapper,
)
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_state

Write = Callable[[], Any]


class DeferredSave(TorchDistSaveShardedStrategy):
    """The torch_dist format in two acts: `save` collects this rank's shards, and what `take`
    returns writes and syncs them.

    The second act talks to the other ranks over a gloo group of its own, so that it can run in
    another thread while training goes on; with `aside` the shards are copies in host memory.
    """

    def __init__(self, aside: bool) -> None:
        super().__init__("torch_dist", 1)
        self._aside = aside
        self._group = dist.new_group(backend="gloo")
        self._write: Write | None = None

    def save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> None:
        """Collect this rank's shards; nothing is written yet."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        _copy_to_host(by_key, everything=self._aside)
        self._write = partial(
            save_state,
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
            process_group=self._group,
        )

    def close(self) -> None:
        """Dissolve the group; nothing is written any more."""
        dist.destroy_process_group(self._group)

    def take(self) -> Write:
        """What every rank must call once; it returns when all ranks' shards are on the disk."""
        assert self._write is not None, "save() comes first"
        write, self._write = self._write, None
        return write


def shared_by(strategy: DeferredSave, replicas: dist.ProcessGroup) -> Any:
    """`strategy` for ranks of `replicas`, which hold the same shards and share the writing."""
    if replicas.size() == 1:
        return strategy
    return FullyParallelSaveStrategyWrapper(strategy, replicas, do_cache_distribution=True)


def _copy_to_host(shards: Any, *, everything: bool) -> None:
    """Training changes its tensors in place; what is written later must be of this step.

    Without `everything` only what is on a GPU: another thread would have to wait for its copies.
    """
    for value in nested_values(shards):
        if isinstance(value, ShardedTensor) and (everything or value.data.is_cuda):
            value.data = value.data.detach().to("cpu", copy=True)
        elif isinstance(value, ShardedObject) and everything:
            value.data = copy.deepcopy(value.data)
