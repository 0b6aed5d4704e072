"""Bytes that a run leaves on the disk. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from megatron_vr.algorithm.plan import SAMPLING_STAGES, Node
from megatron_vr.cluster.planner.stage_times import TRAININGS, World, checkpoint_gb
from megatron_vr.cluster.planner.work import sampling_of, train_settings, training_of

# Of a sampled token: its id, its log-prob, and four characters of text.
TOKEN_BYTES = 12


@dataclass(frozen=True)
class Disk:
    """10⁹ bytes of tables, checkpoints and exported models."""

    tables: float
    checkpoints: float
    exports: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.tables + self.checkpoints + self.exports


def disk_of(nodes: Iterable[Node], world: World) -> Disk:
    """What `nodes` write, with the checkpoint that is being written beside those kept."""
    tables = checkpoints = exports = 0.0
    for node in nodes:
        if node.stage in SAMPLING_STAGES:
            asked = sampling_of(node, world.counts, world.assumed)
            tables += asked.count * asked.tokens * TOKEN_BYTES / 1e9
        elif node.stage in TRAININGS:
            settings = train_settings(node)
            steps = training_of(node, world.counts, world.assumed).steps
            kept = settings.keep_last + 1
            if settings.keep_every is not None:
                kept += steps // settings.keep_every
            written = -(-steps // settings.save_every) + 1
            checkpoints += min(kept, written) * checkpoint_gb(world)
        elif node.stage == "export" or (node.stage == "base" and _fetched(node)):
            exports += world.weights_gb
    return Disk(tables, checkpoints, exports)


def _fetched(node: Node) -> bool:
    """Whether the base is copied here: from the hub, as far as the name tells."""
    path = node.settings.model.path
    return path is None or path.count("/") == 1
