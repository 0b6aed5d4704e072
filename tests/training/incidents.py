"""What happens to trainings, done to them: run by a rank."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from megatron_vr.errors import Requeue, StageError, VRError
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.metrics import StepMetrics
from megatron_vr.training.trainer import skipped_updates, train
from tests.training.harness import Stop, stop_after, with_layout
from tests.training.jobs import POISONED, differing, job, metrics


def alive() -> int:
    """Wrapped models that are still in memory."""
    from megatron.core.distributed import DistributedDataParallel

    gc.collect()
    return sum(isinstance(thing, DistributedDataParallel) for thing in gc.get_objects())


def not_finite(folder: Path) -> dict[str, str]:
    made = job(folder / "not-a-number", folder / "runs" / "not-finite")
    try:
        train(made)
    except StageError as error:
        (file,) = made.folder.glob("not-finite-*.json")
        return {"message": str(error), "file": file.read_text(encoding="utf-8")}
    return {}


def skipped(folder: Path) -> dict[str, Any]:
    """Trainings of a model that has no number for a token of one example only."""
    from megatron.core import dist_checkpointing

    broken = folder / "poisoned"
    made = job(broken, folder / "runs" / "skip", not_finite="skip")
    final = train(made)
    values = dist_checkpointing.load_plain_tensors(str(final))
    limited = job(broken, folder / "runs" / "skip-less", not_finite="skip", skips_allowed=1)
    stopped = job(broken, folder / "runs" / "skip-resumed", not_finite="skip")
    with contextlib.suppress(Stop):
        train(stopped, stop_after(5))
    train(stopped)
    poisoned = [
        any(draw.example == POISONED for draw in made.plan().batch(step)) for step in range(6)
    ]
    return {
        "poisoned": poisoned,
        "told": skipped_updates(final),
        "metrics": metrics(made.folder),
        "resumed": metrics(stopped.folder),
        "finite": bool(values["output_layer.weight"].isfinite().all()),
        "refused": refusal(limited),
        "batches": sorted(path.name for path in made.folder.glob("not-finite-*")),
    }


def kept(folder: Path, start: Path) -> list[str]:
    made = job(start, folder / "runs" / "kept", keep_last=2, keep_every=2, save_every=1)
    return sorted(path.name for path in train(made).parent.iterdir())


def written_late(folder: Path, start: Path) -> list[str]:
    """How a checkpoint differs that is written only after two more steps were done."""
    from megatron_vr.training.save_strategy import DeferredSave

    at_once = job(start, folder / "runs" / "at-once", save_aside=False, keep_last=3)
    late = job(start, folder / "runs" / "late", keep_last=3)
    trained_on = threading.Event()
    take = DeferredSave.take

    def take_later(self: DeferredSave) -> Callable[[], None]:
        write = take(self)

        def write_later() -> None:
            assert trained_on.wait(60), "the training waited for its checkpoint"
            write()

        return write_later

    def on_step(found: StepMetrics) -> None:
        if found.step == 4:
            trained_on.set()

    train(at_once)
    with mock.patch.object(DeferredSave, "take", take_later):
        train(late, on_step)
    name = "checkpoints/step-000002"
    return differing(at_once.folder / name, late.folder / name)


def disk_full(folder: Path, start: Path) -> dict[str, Any]:
    """A training whose second checkpoint finds no room."""
    from megatron_vr.training.save_strategy import DeferredSave

    made = job(start, folder / "runs" / "disk-full")
    take, turns = DeferredSave.take, iter([False, True, True])

    def take_or_fail(self: DeferredSave) -> Callable[[], None]:
        write, fails = take(self), next(turns)

        def no_room() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        return no_room if fails else write

    with mock.patch.object(DeferredSave, "take", take_or_fail):
        said = refusal(made)
    left = sorted(path.name for path in (made.folder / "checkpoints").glob("step-??????"))
    return {"said": said, "left": left}


def asked_to_stop(folder: Path, start: Path) -> dict[str, Any]:
    """A training that is asked to stop in step 3, and goes on."""
    made = job(start, folder / "runs" / "asked", save_every=100)
    rank, steps = dist.get_rank(), []

    def asked() -> bool:
        # The last rank alone hears of it.
        return len(steps) == 2 and rank == dist.get_world_size() - 1

    message = ""
    try:
        train(made, lambda found: steps.append(found.step), asked)
    except Requeue as error:
        message = f"{error.exit_code}: {error}"
    dist.barrier()
    saved = sorted(path.name for path in (made.folder / "checkpoints").iterdir())
    steps.append(0)
    final = train(made, lambda found: steps.append(found.step))
    return {"message": message, "saved": saved, "steps": steps, "final": final}


def refusals(folder: Path, start: Path) -> dict[str, str]:
    """What is said of checkpoints that cannot be resumed from."""
    stopped = job(start, folder / "stopped")
    with contextlib.suppress(Stop):
        train(stopped, stop_after(3))

    def shorten(path: Path) -> None:
        data = next(path.glob("*.distcp"))
        os.truncate(data, data.stat().st_size // 2)

    def scribble(path: Path) -> None:
        data = next(path.glob("*.distcp"))
        data.write_bytes(b"x" * data.stat().st_size)

    def unlink(path: Path) -> None:
        (path / ".metadata").unlink()

    spoilers = {
        "truncated": shorten,
        "scribbled": scribble,
        "incomplete": unlink,
        "foreign": lambda path: (path / "training.json").unlink(),
    }
    found = {}
    for name, spoil in spoilers.items():
        copy = folder / name
        shutil.copytree(stopped.folder, copy)
        spoil(copy / "checkpoints" / "step-000002")
        found[name] = refusal(job(start, copy))
    found["seed"] = refusal(job(start, stopped.folder, seed=6))
    found["model"] = refusal(job(folder / "qwen2-tied", stopped.folder))
    warmup = stopped.settings.optimizer.model_copy(update={"warmup_steps": 6})
    found["warmup"] = refusal(job(start, folder / "warmup", optimizer=warmup))
    return found


def refusal(made: Any) -> str:
    try:
        train(made)
    except VRError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def killed_while_saving(rank: int, folder: str, start: str) -> None:
    """Kill this process while the checkpoint of step 4 is being written."""
    aside = Path(folder) / "checkpoints" / "step-000004.tmp"

    def watch() -> None:
        while not any(aside.glob("*")):
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    with_layout(Layout(), train, job(Path(start), Path(folder)))
    raise AssertionError("the training outlived its kill")
