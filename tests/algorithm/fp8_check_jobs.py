"""Two trainings that are compared as bfloat16 and FP8 are, run by the ranks of a test. FP8 takes a
GPU; here float32 stands beside bfloat16, a difference that is as real. Imports no transformers."""

from __future__ import annotations

import gc
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from megatron_vr.algorithm import fp8_check
from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.fp8_check import Fp8Asked, compare_jobs
from megatron_vr.algorithm.progress import Talk
from megatron_vr.errors import VRError
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.layout import Layout
from megatron_vr.parallel.world import World
from megatron_vr.training.checked import Checked
from megatron_vr.training.job import TrainJob
from tests.training.harness import with_layout
from tests.training.jobs import OPTIMIZER, job

STEPS = 12
NAMES = ("float32", "bfloat16")


def jobs(start: Path, folder: Path, **changes: Any) -> tuple[TrainJob, TrainJob]:
    """The same training of 30 steps in float32 and in bfloat16; `changes` are of the second."""
    usual = {"steps": 30, "log_every": 5}
    first = job(start, folder, **usual)
    return first, job(start, folder, **usual | {"dtype": "bfloat16"} | changes)


def context_of(world: World, interrupt: Interrupt | None = None) -> Context:
    return Context(world, Talk(world.is_main), interrupt or Interrupt())


class Halves:
    """Inside, notes which halves are made, and how many wrapped models are alive in each."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.alive: dict[str, int] = {}
        self._models: list[weakref.ref[Any]] = []

    def __enter__(self) -> Halves:
        self._patch = mock.patch.object(fp8_check, "first_steps", self._noted)
        self._first_steps = fp8_check.first_steps
        self._patch.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._patch.stop()

    def _noted(self, job: TrainJob, steps: int, name: str, on_step: Any, asked: Any) -> Any:
        self.made.append(name)

        def count(metrics: Any) -> None:
            if metrics.step == 1:
                self.alive[name] = self._count()
            on_step(metrics)

        return self._first_steps(job, steps, name, count, asked)

    def _count(self) -> int:
        """Those of earlier halves, which the collector does not list any more, and of this one."""
        from megatron.core.distributed import DistributedDataParallel

        new = [thing for thing in gc.get_objects() if isinstance(thing, DistributedDataParallel)]
        known = [id(model()) for model in self._models]
        self._models += [weakref.ref(model) for model in new if id(model) not in known]
        return sum(model() is not None for model in self._models)


def compared(start: Path, folder: Path, gap: float = 0.5, **changes: Any) -> Checked:
    """What two real halves told."""
    first, second = jobs(start, folder, **changes)
    world = World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    return compare_jobs(first, second, NAMES, context_of(world), Fp8Asked(STEPS, gap))


def made_halves(work: Callable[[], Any]) -> list[str]:
    """The names of the halves that `work` makes."""
    with Halves() as halves:
        work()
    return halves.made


def refusal(work: Callable[[], Any]) -> str:
    try:
        work()
    except VRError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def one_process(rank: int, root: str) -> dict[str, Any]:
    """All that one process is asked for."""
    folder = Path(root)
    return dict(with_layout(Layout(), _one_process, folder, folder / "qwen3-untied"))


def _one_process(folder: Path, start: Path) -> dict[str, Any]:
    from megatron_vr.training.trainer import train
    from tests.training.jobs import metrics

    runs, found = folder / "runs", {}
    # The very training whose first steps are compared.
    trained, same = job(start, runs / "trained", steps=30), runs / "same"
    train(trained)
    found["trained"] = [line["loss"] for line in metrics(trained.folder)]
    before = sorted(path.name for path in trained.folder.rglob("*"))
    with Halves() as halves:
        found["same"] = compared(start, trained.folder)
    found["halves"], found["alive"] = halves.made, halves.alive
    after = {path.name for path in trained.folder.rglob("*")}
    found["left"] = sorted(after - set(before))
    found["metrics again"] = [line["loss"] for line in metrics(trained.folder)]
    found["again"] = made_halves(lambda: compared(start, trained.folder))
    found["other steps"] = made_halves(
        lambda: compare_jobs(
            *jobs(start, trained.folder), NAMES, context_of(World(0, 1)), Fp8Asked(3, 0.5)
        )
    )
    wrecked = OPTIMIZER.model_copy(update={"learning_rate": 30.0, "warmup_steps": 0})
    found["wrecked"] = compared(start, runs / "wrecked", 0.005, optimizer=wrecked)
    found["poisoned"] = _poisoned(folder, runs / "poisoned")
    first, second = jobs(start, same)
    found["too many"] = refusal(
        lambda: compare_jobs(first, second, NAMES, context_of(World(0, 1)), Fp8Asked(31, 0.5))
    )
    found["stopped"] = _stopped(start, runs / "stopped")
    return found


def _poisoned(folder: Path, into: Path) -> Checked:
    """The second half begins from a model that has no number for one example."""
    first, second = jobs(folder / "qwen3-untied", into)
    second = replace(second, start_model=folder / "poisoned")
    return compare_jobs(first, second, NAMES, context_of(World(0, 1)), Fp8Asked(STEPS, 0.5))


def _stopped(start: Path, into: Path) -> dict[str, Any]:
    """A check that is asked to stop in its second half, and is run again."""
    interrupt = Interrupt()
    first, second = jobs(start, into)
    halves = fp8_check.first_steps

    def stopping(job: TrainJob, steps: int, name: str, on_step: Any, asked: Any) -> Any:
        if name == NAMES[1]:
            interrupt.signum = signal.SIGTERM
        return halves(job, steps, name, on_step, asked)

    def check() -> Checked:
        return compare_jobs(
            first, second, NAMES, context_of(World(0, 1), interrupt), Fp8Asked(STEPS, 0.5)
        )

    with mock.patch.object(fp8_check, "first_steps", stopping):
        said = refusal(check)
    results = [path.name for path in into.glob("fp8-check.*")]
    return {
        "said": said,
        "results": results,
        "again": made_halves(lambda: compared(start, into)),
    }


def killed_between(rank: int, start: str, folder: str) -> None:
    """Die by SIGKILL at the second step of the second half."""
    halves = fp8_check.first_steps

    def dying(job: TrainJob, steps: int, name: str, on_step: Any, asked: Any) -> Any:
        def die(metrics: Any) -> None:
            if name == NAMES[1] and metrics.step == 2:
                os.kill(os.getpid(), signal.SIGKILL)

        return halves(job, steps, name, die, asked)

    with mock.patch.object(fp8_check, "first_steps", dying):
        with_layout(Layout(), compared, Path(start), Path(folder))
    raise AssertionError("the check outlived its kill")


def resumed(rank: int, start: str, folder: str) -> tuple[list[str], Checked]:
    """Run the check that was killed again."""
    found: list[Checked] = []

    def work() -> None:
        found.append(with_layout(Layout(), compared, Path(start), Path(folder)))

    return made_halves(work), found[0]


def two_ranks(rank: int, start: str, folder: str) -> Checked:
    """The same check over two data-parallel ranks."""
    found: Checked = with_layout(Layout(), compared, Path(start), Path(folder))
    return found
