"""base: the model everything starts from, given or made from random weights."""

from __future__ import annotations

from pathlib import Path

from megatron_vr.algorithm.check_model import check_architecture
from megatron_vr.algorithm.context import Context, model_folder
from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.convert.fetch import fetch_model


def run(node: Node, context: Context) -> Finished:
    """Check the given folder, or write `model/` with random weights and the toy tokenizer."""
    from megatron_vr.models.architecture import read_architecture

    settings = node.settings.model
    if settings.path is not None:
        if context.world.is_main and not Path(settings.path).is_dir():
            fetch_model(settings.path, node.path / "model", "model.path")
        context.world.barrier()
        architecture = read_architecture(model_folder(node))
        # A job of its own has other processes than the trainings that were checked for theirs.
        check_architecture(node.settings, architecture, layout_of(node.settings).model_ranks)
        return Finished(summary={"path": settings.path, "family": architecture.family})
    if context.world.is_main and not (node.path / "model").exists():
        _make_random(node)
    return Finished(summary={"path": str(node.path / "model")})


def _make_random(node: Node) -> None:
    from megatron_vr.convert.random_init import write_random_model
    from megatron_vr.problems.toy_tokenizer import make_tokenizer

    shape = node.settings.model.random
    if shape is None:
        raise AssertionError("a base without a path is random: settings are checked at load")
    write_random_model(
        shape.model_dump(), make_tokenizer(), node.path / "model", node.settings.run.seed
    )
