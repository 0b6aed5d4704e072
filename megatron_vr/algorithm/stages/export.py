"""export: a training's last checkpoint as a Hugging Face folder, for samplers and people."""

from __future__ import annotations

from megatron_vr.algorithm.context import Context, model_folder
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.errors import CheckpointError


def run(node: Node, context: Context) -> Finished:
    """Write `model/` from the sharded checkpoint, on the main process, tensor by tensor."""
    destination = node.path / "model"
    if context.world.is_main and not destination.exists():
        from megatron_vr.convert.to_hf import convert_to_hf
        from megatron_vr.training.checkpoint import newest_checkpoint

        base = model_folder(node.inputs["base"])
        checkpoint = newest_checkpoint(node.inputs["trained"].path / "checkpoints")
        try:
            convert_to_hf(checkpoint, destination, base=base, dtype=node.settings.model.dtype)
        except CheckpointError:
            # A signal to all processes ends those that the conversion started.
            context.interrupt.check("the export")
            raise
    return Finished(summary={"path": str(destination)})
