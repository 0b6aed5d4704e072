"""base: the model everything starts from, given or made from random weights."""

from __future__ import annotations

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished


def run(node: Node, context: Context) -> Finished:
    """Check the given folder, or write `model/` with random weights and the toy tokenizer."""
    from megatron_vr.models.architecture import read_architecture

    settings = node.settings.model
    if settings.path is not None:
        architecture = read_architecture(settings.path)
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
