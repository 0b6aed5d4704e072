"""What the processes of the training tests do. Imports no transformers."""

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
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist

from megatron_vr.errors import Requeue, StageError, VRError
from megatron_vr.parallel.layout import Layout
from megatron_vr.training import update
from megatron_vr.training.metrics import StepMetrics
from megatron_vr.training.trainer import train
from tests.training.jobs import POISONED, differing, job, metrics, scored_sequences


@dataclass(frozen=True)
class Case:
    """One training that is compared with its reference."""

    name: str
    model: str
    layout: Layout = field(default_factory=Layout)
    changes: dict[str, Any] = field(default_factory=dict)
    bucket_size: int | None = None


ONE_RANK = [
    Case("one pack a step", "qwen3-untied", changes={"micro_batch_tokens": 200}),
    Case("several packs a step", "qwen3-untied", changes={"micro_batch_tokens": 35}),
    Case("tied embeddings", "qwen2-tied"),
]
BF16: dict[str, Any] = {"dtype": "bfloat16"}
OVERLAP: dict[str, Any] = {"overlap": True, "micro_batch_tokens": 35}
TWO_RANKS = [
    Case("dp2", "qwen3-untied"),
    Case("dp2 tied, several packs", "qwen2-tied", changes={"micro_batch_tokens": 35}),
    Case("dp2, one rank without an example", "qwen3-untied", changes={"batch_size": 1}),
    Case("tp2 sp", "qwen3-untied", Layout(tensor=2, sequence_parallel=True)),
    Case("tp2 tied", "qwen2-tied", Layout(tensor=2), {"micro_batch_tokens": 35}),
    Case("pp2", "qwen3-untied", Layout(pipeline=2)),
    Case("pp2 tied, several packs", "qwen2-tied", Layout(pipeline=2), {"micro_batch_tokens": 35}),
    Case("pp2 vpp2", "qwen3-untied", Layout(pipeline=2, virtual_pipeline=2)),
    # Many small buckets, as a large model has many: each waits for its own weights.
    Case("dp2 overlap", "qwen3-untied", changes=OVERLAP, bucket_size=2000),
    Case("dp2 overlap tied", "qwen2-tied", changes=OVERLAP, bucket_size=2000),
    Case("dp2 overlap, one bucket", "qwen3-untied", changes=OVERLAP),
    Case("tp2 sp bf16", "qwen3-untied", Layout(tensor=2, sequence_parallel=True), BF16),
    Case("dp2 bf16 overlap", "qwen2-tied", changes=BF16 | {"overlap": True}),
    Case("cp2", "qwen3-untied", Layout(context=2)),
    Case("cp2 recompute", "qwen3-untied", Layout(context=2), {"recompute": "full"}),
    Case("cp2 tied, several packs", "qwen2-tied", Layout(context=2), {"micro_batch_tokens": 40}),
]
FOUR_RANKS = [
    Case("tp2 pp2 sp", "qwen3-untied", Layout(tensor=2, pipeline=2, sequence_parallel=True)),
    Case(
        "tp2 pp2 sp tied, several packs",
        "qwen2-tied",
        Layout(tensor=2, pipeline=2, sequence_parallel=True),
        {"micro_batch_tokens": 35},
    ),
    Case("tp2 cp2", "qwen3-untied", Layout(tensor=2, context=2)),
    Case(
        "tp2 cp2 sp tied",
        "qwen2-tied",
        Layout(tensor=2, context=2, sequence_parallel=True),
        {"micro_batch_tokens": 40},
    ),
    Case("pp2 cp2", "qwen3-untied", Layout(pipeline=2, context=2)),
    Case(
        "dp2 cp2, a rank without an example", "qwen3-untied", Layout(context=2), {"batch_size": 1}
    ),
    Case("dp2 pp2 vpp2", "qwen3-untied", Layout(pipeline=2, virtual_pipeline=2)),
    Case(
        "dp2 pp2 vpp2 overlap, recompute",
        "qwen2-tied",
        Layout(pipeline=2, virtual_pipeline=2),
        OVERLAP | {"recompute": "selective"},
        bucket_size=2000,
    ),
    Case("dp2 pp2 overlap", "qwen3-untied", Layout(pipeline=2), OVERLAP, bucket_size=2000),
    Case("dp2 pp2 overlap tied", "qwen2-tied", Layout(pipeline=2), OVERLAP, bucket_size=2000),
    Case("dp4, two ranks without an example", "qwen2-tied", changes={"batch_size": 2}),
]


class Stop(Exception):
    """A training that is stopped between two steps."""


def stop_after(step: int) -> Callable[[StepMetrics], None]:
    """An `on_step` that stops the training there."""

    def on_step(found: StepMetrics) -> None:
        if found.step == step:
            raise Stop

    return on_step


def with_layout(layout: Layout, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` between forming and dissolving Megatron's groups."""
    from megatron.core import parallel_state

    from megatron_vr.parallel.layout import initialise

    initialise(layout, 1, "cpu")
    try:
        return function(*args)
    finally:
        parallel_state.destroy_model_parallel()


def build(folder: Path, layout: Layout) -> list[Any]:
    """The Hugging Face model in `folder` as this rank's stages."""
    from megatron_vr.convert.load import load_hf
    from megatron_vr.models.architecture import read_architecture
    from megatron_vr.models.gpt import build_model

    architecture = read_architecture(folder)
    models = build_model(
        architecture, layout, spec="plain", dtype="float32", recompute="none", log_prob_chunk=16
    )
    load_hf(models, folder, architecture)
    return list(models)


def compared(case: Case, folder: Path) -> dict[str, Any]:
    """Train `case` for three steps: its metrics, and the error of the update relative to the
    reference's, as norms: of each parameter here, and of all of them (`""`)."""
    from megatron.core import dist_checkpointing
    from megatron.core.distributed import DistributedDataParallelConfig

    start = folder / case.model
    made = job(start, folder / "runs" / case.name, case.layout, steps=3, **case.changes)
    buckets = partial(DistributedDataParallelConfig, bucket_size=case.bucket_size)
    with mock.patch.object(update, "DistributedDataParallelConfig", buckets):
        checkpoint = train(made)
    trained, expected, initial = (
        build(source, case.layout) for source in (start, folder / "references" / case.name, start)
    )
    many = len(trained) > 1
    content = {
        f"model{i}" if many else "model": model.sharded_state_dict()
        for i, model in enumerate(trained)
    }
    dist_checkpointing.load(content, str(checkpoint))
    off, moved = {"": 0.0}, {"": 0.0}
    for stage, wanted, before in zip(trained, expected, initial, strict=True):
        values, origin = dict(wanted.named_parameters()), dict(before.named_parameters())
        for name, parameter in stage.named_parameters():
            value = values[name].detach().double()
            off[name] = float((parameter.detach().double() - value).square().sum())
            moved[name] = float((value - origin[name].detach().double()).square().sum())
            off[""] += off[name]
            moved[""] += moved[name]
    errors = {name: (off[name] / moved[name]) ** 0.5 for name in off}
    return {"metrics": metrics(made.folder), "errors": errors}


def resumed(layout: Layout, folder: Path, start: Path, **changes: Any) -> dict[str, Any]:
    """Train without a break, then with one after step 3 of 6 (its last checkpoint is of step 2)."""
    whole, broken = (job(start, folder / name, layout, **changes) for name in ("whole", "broken"))
    uninterrupted = train(whole)
    try:
        train(broken, stop_after(3))
    except Stop:
        # Gone at step 3 as by kill: a half line was being written.
        if dist.get_rank() == 0:
            with open(broken.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write('{"step": 4, "lo')
    dist.barrier()
    steps: list[int] = []
    continued = train(broken, lambda found: steps.append(found.step))
    return {
        "steps": steps,
        "differing": differing(uninterrupted, continued),
        "metrics": (metrics(whole.folder), metrics(broken.folder)),
        "left": sorted(path.name for path in (broken.folder / "checkpoints").iterdir()),
        "again": train(broken, stop_after(0)) == continued,
    }


def moved(folder: Path, start: Path) -> list[float]:
    """Losses of a training begun at DP2 and continued at TP2."""
    stopped = job(start, folder)
    with contextlib.suppress(Stop):
        with_layout(stopped.layout, train, stopped, stop_after(3))
    dist.barrier()
    layout = Layout(tensor=2)
    with_layout(layout, train, job(start, folder, layout))
    return [line["loss"] for line in metrics(folder)]


# Split in every way that four processes allow, one after the other.
MOVES = (
    Layout(tensor=2, pipeline=2, sequence_parallel=True),
    Layout(context=2),
    Layout(pipeline=2, virtual_pipeline=2),
    Layout(tensor=2, context=2),
)


def moved_often(folder: Path, start: Path) -> tuple[list[float], list[float]]:
    """Losses of a training of 8 steps, and of one that changes its layout after every second."""
    changes: dict[str, Any] = {"steps": 8, "save_every": 1}
    whole = job(start, folder / "whole", **changes)
    with_layout(whole.layout, train, whole)
    for turn, layout in enumerate(MOVES):
        made = job(start, folder / "moved", layout, **changes)
        with contextlib.suppress(Stop):
            # Stopped in the step after, before it is saved.
            with_layout(layout, train, made, stop_after(2 * turn + 3))
        dist.barrier()
    losses = [[line["loss"] for line in metrics(folder / name)] for name in ("whole", "moved")]
    return losses[0], losses[1]


def scores(layout: Layout, start: Path, counts: list[int]) -> dict[int, list[Any]]:
    """By token budget, the scores of this replica's `counts[data-parallel rank]` sequences."""
    from megatron.core import parallel_state

    from megatron_vr.training.scoring import Sequenced, score

    rank = parallel_state.get_data_parallel_rank()
    sequences = [Sequenced(*found) for found in scored_sequences(rank, counts[rank])]
    models = build(start, layout)
    found = {}
    for budget in (48, 1000):
        heard: list[int] = []
        found[budget] = score(
            models,
            sequences,
            budget,
            heard.append,
            entropy=budget == 48,
            share_prompts=budget == 1000 and layout.context == 1,
        )
        assert sum(heard) == len(sequences), f"progress of {heard} sequences"
    return found


def one_rank(rank: int, folder: str) -> dict[str, Any]:
    """All that one process checks."""
    return with_layout(Layout(), _one_rank, Path(folder))


def _one_rank(folder: Path) -> dict[str, Any]:
    start = folder / "qwen3-untied"
    cases = {case.name: compared(case, folder) for case in ONE_RANK}
    killed = job(start, folder / "killed")
    resumptions = {
        "float32": resumed(Layout(), folder / "float32", start),
        "bfloat16": resumed(Layout(), folder / "bfloat16", start, dtype="bfloat16"),
        "at once": resumed(Layout(), folder / "at-once", start, save_aside=False),
    }
    after_kill = train(killed)
    return {
        "cases": cases,
        "resumed": resumptions,
        "killed": {
            "differing": differing(folder / "float32/whole/checkpoints/step-000006", after_kill),
            "metrics": metrics(killed.folder),
            "left": sorted(path.name for path in (killed.folder / "checkpoints").iterdir()),
        },
        "scores": scores(Layout(), start, [7]),
        "not finite": not_finite(folder),
        "skipped": skipped(folder),
        "kept": kept(folder, start),
        "late": written_late(folder, start),
        "asked": asked_to_stop(folder, start),
        "disk full": disk_full(folder, start),
        "refused": refusals(folder, start),
        "alive": alive(),
    }


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
    values = dist_checkpointing.load_plain_tensors(str(train(made)))
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
        "metrics": metrics(made.folder),
        "resumed": metrics(stopped.folder),
        "finite": bool(values["output_layer.weight"].isfinite().all()),
        "refused": _refusal(limited),
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
        said = _refusal(made)
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
        found[name] = _refusal(job(start, copy))
    found["seed"] = _refusal(job(start, stopped.folder, seed=6))
    found["model"] = _refusal(job(folder / "qwen2-tied", stopped.folder))
    warmup = stopped.settings.optimizer.model_copy(update={"warmup_steps": 6})
    found["warmup"] = _refusal(job(start, folder / "warmup", optimizer=warmup))
    return found


def _refusal(made: Any) -> str:
    try:
        train(made)
    except VRError as error:
        return f"{type(error).__name__}: {error}"
    return "trained"


def two_ranks(rank: int, folder: str) -> dict[str, Any]:
    """All that two processes check."""
    root = Path(folder)
    start = root / "qwen3-untied"
    found: dict[str, Any] = {"cases": {}, "resumed": {}, "scores": {}}
    for case in TWO_RANKS:
        found["cases"][case.name] = with_layout(case.layout, compared, case, root)
    for name, layout in (
        ("dp2", Layout()),
        ("tp2", Layout(tensor=2, sequence_parallel=True)),
        ("pp2", Layout(pipeline=2, virtual_pipeline=2)),
        ("cp2", Layout(context=2)),
    ):
        found["resumed"][name] = with_layout(layout, resumed, layout, root / name, start)
        # Replicas score different numbers of sequences, and none of them waits for the other.
        found["scores"][name] = with_layout(layout, scores, layout, start, [7, 3])
    found["moved"] = moved(root / "moved", start)
    found["asked"] = with_layout(Layout(), asked_to_stop, root, start)
    return found


def four_ranks(rank: int, folder: str) -> dict[str, Any]:
    """All that four processes check."""
    root = Path(folder)
    start = root / "qwen3-untied"
    cases = {case.name: with_layout(case.layout, compared, case, root) for case in FOUR_RANKS}
    layout = Layout(tensor=2, context=2)
    return {
        "cases": cases,
        "scores": with_layout(layout, scores, layout, start, [7]),
        "moved": moved_often(root / "moves", start),
    }


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
