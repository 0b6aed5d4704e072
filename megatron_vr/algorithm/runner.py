"""Run the nodes of a plan in order, skipping what is done."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterable
from contextlib import nullcontext

from megatron_vr.algorithm.context import Context, title
from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.stages.finished import Finished
from megatron_vr.errors import StageError

MODULE_OF_STAGE = {"sft": "train", "posterior": "train"}


def run_nodes(
    nodes: Iterable[Node], context: Context, *, start_over: bool = False, hand_over: bool = False
) -> None:
    """Make every node's folder; each process calls this with the same nodes.

    What rollout servers do is the main process's work alone; the others wait. With `hand_over`
    the processes return before it instead, for their launcher to do it while they, and what they
    hold of the GPUs, are gone.

    Raises StageError where a node's inputs are not done, its folder was made under other settings
    or another process works in it, Requeue after a node when a process was asked to stop.
    """
    for node in nodes:
        if context.world.from_main(node.folder.done):
            context.talk.line(f"{title(node)}: done before")
            continue
        if node.is_served and hand_over:
            return
        check_inputs(node)
        with node.folder.lock() if context.world.is_main else nullcontext():
            if context.world.is_main:
                node.folder.open(start_over=start_over)
            context.world.barrier()
            began = time.monotonic()
            if node.is_served and context.world.size > 1:
                finished = _stage_of_main(node, context)
            else:
                finished = _stage(node, context)
            seconds = time.monotonic() - began
            if context.world.is_main:
                # Of the invocation that finished it: a resumed stage took longer in all.
                node.folder.finish(finished.parts, {**finished.summary, "seconds": seconds})
        if node.is_served and not context.world.is_main:
            context.wait_for(node.folder)
        context.talk.line(f"{title(node)}: {seconds:.1f} s  {_told(finished)}")
        context.meet(title(node))


def _stage_of_main(node: Node, context: Context) -> Finished:
    return _stage(node, context.alone()) if context.world.is_main else Finished()


def _stage(node: Node, context: Context) -> Finished:
    name = MODULE_OF_STAGE.get(node.stage, node.stage)
    module = importlib.import_module(f"megatron_vr.algorithm.stages.{name}")
    finished: Finished = module.run(node, context)
    return finished


def check_inputs(node: Node) -> None:
    """Raise StageError where a stage that `node` reads from is not done."""
    for source in node.inputs.values():
        if not source.folder.done:
            name = source.name
            raise StageError(
                f"{node.name} needs {name}, which is not done: run "
                f"`megatron-vr stage CONFIG {name}` first, or `megatron-vr run CONFIG`"
            )


def _told(finished: Finished) -> str:
    shown = {k: v for k, v in finished.summary.items() if isinstance(v, (int, float))}
    return "  ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
