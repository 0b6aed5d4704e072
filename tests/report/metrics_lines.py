"""Lines of metrics as a training writes them, and as older ones did."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from megatron_vr.training.metrics import StepMetrics

Line = dict[str, float | None]

OLD = ("step", "loss", "grad_norm", "learning_rate", "tokens_per_second", "effective_sample_size")
CHECKPOINT = 0.25  # seconds, after every tenth step


def metrics_line(step: int, dice: random.Random) -> Line:
    """A step on a GPU whose peak is not known."""
    found = StepMetrics(
        step=step,
        loss=2.0 / step + 0.3,
        grad_norm=1.0 + dice.random(),
        learning_rate=1e-3 * step / 40,
        tokens_per_second=9000.0 + 500 * dice.random(),
        effective_sample_size=40 + 10 * dice.random(),
        seconds=0.1,
        tflops=0.02 + 0.01 * dice.random(),
        mfu=None,
        data_seconds=0.01,
        forward_backward_seconds=0.06,
        optimizer_seconds=0.02,
        checkpoint_seconds=CHECKPOINT if step % 10 == 1 and step > 1 else 0.0,
        straggler=0.04 * dice.random(),
        peak_memory_gib=1.0 + step / 100,
        useful=0.9 + 0.05 * dice.random(),
        skipped=0,
    )
    return {"step": step, "mfu": None} | found.known()


def old(line: Line) -> Line:
    """The line as a version without times and shares wrote it."""
    return {name: line[name] for name in (*OLD, "seconds")}


def rewrite(file: Path, edit: Callable[[Line], Line]) -> None:
    """Put `edit` of every line in its place."""
    lines = [edit(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
