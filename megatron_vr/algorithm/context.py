"""What every stage is handed: the processes, the voice, and parts worked on side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_vr.algorithm.plan import Node
from megatron_vr.algorithm.progress import Talk, Whole
from megatron_vr.algorithm.sampling_parts import Part, PartSampler, Sampled
from megatron_vr.config.comparisons import MAIN_ARM
from megatron_vr.parallel.heartbeat import stopped_with_peer
from megatron_vr.parallel.interrupt import Interrupt, stopped_after
from megatron_vr.parallel.world import World
from megatron_vr.problems.problem import PROBLEM_SCHEMA, Problem, from_table
from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.rollout.engine import Engine, never
from megatron_vr.rollout.open import open_engine
from megatron_vr.traces.store import StageFolder, count_parts

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Context:
    """Passed to each stage; holds no settings (those are the node's).

    `peer_stopped`: whether another rank left because it was asked to stop, for work in which no
    collective would tell.
    """

    world: World
    talk: Talk
    interrupt: Interrupt
    peer_stopped: Callable[[], bool] = never

    def problems(self, node: Node) -> list[Problem]:
        """The problems that `node` works on."""
        return from_table(node.inputs["problems"].folder.read(PROBLEM_SCHEMA))

    def format(self, node: Node, model: Path) -> PromptFormat:
        """Prompts and markers of `node`'s settings for the tokenizer in the folder `model`."""
        prompts = node.settings.prompts
        return load_format(prompts.format, load_tokenizer(model), prompts.posterior)

    def sample_parts(self, node: Node, engine: Engine, sampled: Sampled, unit: str) -> int:
        """Make the missing parts of what `sampled` describes, over all processes.

        Part i holds items i·part_size … so its content does not depend on who makes it or when.
        Returns the number of parts. Raises Requeue on every process when one of them was asked to
        stop; what was finished by then is kept.
        """
        count = count_parts(sampled.total, sampled.part_size)
        missing = self.world.from_main(node.folder.missing(count))
        mine = [Part(node.folder, sampled, index) for index in self.world.mine(missing)]
        others = [
            Part(node.folder, sampled, index)
            for index in sorted({*missing} - {*self.world.mine(missing)})
        ]
        total = sampled.total * sampled.per_item
        whole = Whole(
            node.path,
            total=total,
            before=total - _generations([*mine, *others]),
            others=lambda: _generations(part for part in others if part.is_made),
        )
        self.sample(mine, engine, title(node), unit, whole)
        self.meet(f"the generations at hand of {title(node)}")
        return count

    def sample(
        self,
        parts: Sequence[Part],
        engine: Engine,
        label: str,
        unit: str,
        whole: Whole | None = None,
    ) -> None:
        """Make `parts` in this process, or as far as it gets before it is asked to stop.

        `whole`: the stage they are of, for `status`.
        """
        with self.talk.bar(label, _generations(parts), unit, whole) as bar:
            sampler = PartSampler(parts, bar, earlier=bar.earlier, tokens=bar.tokens)
            sampler.run(engine, self.stopping)

    def engine(self, node: Node, model: Path) -> Engine:
        """What samples from the model in `model` for `node`."""
        gap = node.settings.scoring.largest_engine_gap
        return open_engine(
            node.settings.engine,
            model,
            logs=node.path / "servers",
            gap=gap,
            say=self.talk.line,
            watch=lambda: self.check("the last part"),
        )

    def alone(self) -> Context:
        """For work that only this process does."""
        return replace(self, world=World(0, 1))

    def wait_for(self, folder: StageFolder) -> None:
        """Return once the main process has finished `folder`, however long that takes.

        Not by a collective: those time out. Raises Requeue when any process was asked to stop.
        """
        while not folder.done:
            self.check("the last part")
            time.sleep(LOOK_SECONDS)

    def check(self, what: str) -> None:
        """Raise Requeue if this process was asked to stop or another left for that."""
        self.interrupt.check(what)
        if self.peer_stopped():
            raise stopped_with_peer()

    def stopping(self) -> bool:
        """Whether this process was asked to stop or another left for that."""
        return self.interrupt.requested or self.peer_stopped()

    def meet(self, what: str) -> None:
        """A barrier that nobody passes once one process was asked to stop.

        Signals reach the processes at different moments; here they agree. Raises Requeue on every
        process; `what` is that which all have finished and saved.
        """
        if self.world.size == 1:
            self.check(what)
            return
        import torch.distributed as dist

        asked: list[str | None] = [None] * self.world.size
        dist.all_gather_object(asked, self.interrupt.signal_name)
        signal_name = next((name for name in asked if name is not None), None)
        if signal_name is not None:
            raise stopped_after(what, signal_name)


def _generations(parts: Iterable[Part]) -> int:
    return sum(part.generations for part in parts)


def title(node: Node) -> str:
    """How a node is called on the screen."""
    row = "" if node.arm == MAIN_ARM else f" ({node.arm})"
    return f"[{node.iteration}] {node.label}{row}"


def model_folder(node: Node) -> Path:
    """The Hugging Face folder that a `base` or `export` node made."""
    given = node.settings.model.path if node.stage == "base" else None
    if given is not None and Path(given).is_dir():
        return Path(given)
    return node.path / "model"
