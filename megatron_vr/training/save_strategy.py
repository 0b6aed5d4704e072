"""How a sharded checkpoint reaches the disk: written by the training process itself.

Megatron's own strategy writes through a `spawn`ed manager and `fork`ed writers even for a
synchronous save. The manager imports the main module anew (seconds, and a hang where that module
has no main guard), and forking a process with running threads may deadlock. Here the same state
dict goes through torch's distributed checkpoint writer; the files are the same format.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
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


class InProcessSave(TorchDistSaveShardedStrategy):
    """The torch_dist format, written and synced in this process; one file per rank."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: str | Path) -> None:
        """Write this rank's shards; returns when all ranks' are on the disk."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(
            sharded_state_dict, self.keep_only_main_replica
        )
        save_state(
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def save_strategy(replicas: dist.ProcessGroup) -> Any:
    """`InProcessSave`; the ranks of `replicas`, which hold the same shards, share the writing."""
    strategy = InProcessSave()
    if replicas.size() == 1:
        return strategy
    return FullyParallelSaveStrategyWrapper(strategy, replicas, do_cache_distribution=True)
