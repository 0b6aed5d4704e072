"""What a training tells about each step: a file of lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_vr.errors import SettingsError
from megatron_vr.traces.durable import write_durably

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step over all ranks; `step` counts the steps done, from 1.

    `loss` is Σ −w log p / C of the batch, `tokens_per_second` counts its real tokens,
    `effective_sample_size` is (Σw)² / Σw² over its examples. `tflops` are 10¹² model operations a
    second and device (`flops.ModelFlops`), `mfu` their share of the device's peak, None where that
    is not known. The seconds of the phases are those of `clock.StepClock`; the checkpoint's are of
    saves since the last step, waiting included. `straggler` is the slowest rank's compute time
    over the ranks' mean, minus one; `peak_memory_gib` the largest over the ranks, in 2³⁰ bytes;
    `useful` the real tokens over all that were computed, padding included; `skipped` the updates
    left out so far because loss or gradient was not finite. What begins with `fp8_` is of
    `fp8_stats.Fp8Stats`, None without FP8, in steps that are not logged, and where nothing tells:
    range and saturation are known with delayed scaling alone.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    effective_sample_size: float
    seconds: float
    tflops: float
    mfu: float | None
    data_seconds: float
    forward_backward_seconds: float
    optimizer_seconds: float
    checkpoint_seconds: float
    straggler: float
    peak_memory_gib: float
    useful: float
    skipped: int
    fp8_input_amax: float | None = None
    fp8_weight_amax: float | None = None
    fp8_gradient_amax: float | None = None
    fp8_range_least: float | None = None
    fp8_range_most: float | None = None
    fp8_saturated: float | None = None
    fp8_broken: float | None = None

    def known(self) -> dict[str, float]:
        """A point for each curve: every number but the step that is there and finite."""
        values = {name: value for name, value in asdict(self).items() if name != "step"}
        return {
            name: value
            for name, value in values.items()
            if value is not None and math.isfinite(value)
        }


class Sink(Protocol):
    """Where metrics go."""

    def write(self, metrics: StepMetrics) -> None:
        """Keep the metrics of one step."""

    def close(self) -> None:
        """Flush and release what is open."""


def check_sinks(tensorboard: bool, wandb_project: str | None) -> None:
    """Raise SettingsError naming the setting whose package is not installed."""
    wanted = {"tensorboard": ("report.tensorboard", tensorboard)}
    wanted["wandb"] = ("report.wandb_project", wandb_project is not None)
    for package, (setting, asked) in wanted.items():
        if asked and importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"{setting} needs the package {package}, which is not installed; "
                f"install it or unset {setting}"
            )


def open_sinks(
    folder: Path, done: int, name: str, tensorboard: bool, wandb_project: str | None
) -> list[Sink]:
    """The sinks of a training in `folder` that has `done` steps behind it.

    What was written of later steps is dropped: the resumed training writes it again.
    """
    sinks: list[Sink] = [MetricsFile(folder / METRICS_FILE, done)]
    if tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", done))
    if wandb_project is not None:
        sinks.append(WeightsAndBiases(wandb_project, name, folder))
    return sinks


class MetricsFile:
    """One JSON object a line."""

    def __init__(self, path: Path, done: int) -> None:
        lines = _complete_lines(path) if path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= done]
        write_durably(path, "".join(line + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (open until close())

    def write(self, metrics: StepMetrics) -> None:
        """Append one line that a reader sees at once; null for what is not known or not finite."""
        nothing: dict[str, float | None] = dict.fromkeys(asdict(metrics))
        line = nothing | {"step": metrics.step} | metrics.known()
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _complete_lines(path: Path) -> list[str]:
    """All lines but one that a kill cut short."""
    *lines, _ = path.read_text(encoding="utf-8").split("\n")
    return lines


class TensorBoard:
    """Scalars under `folder`."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1)

    def write(self, metrics: StepMetrics) -> None:
        """One point of each curve whose value is known."""
        for name, value in metrics.known().items():
            self._writer.add_scalar(f"train/{name}", value, metrics.step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """A run of `project` that a resumed training continues."""

    def __init__(self, project: str, name: str, folder: Path) -> None:
        import wandb

        identity = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=project, name=name, id=identity, resume="allow", dir=str(folder)
        )

    def write(self, metrics: StepMetrics) -> None:
        """One point of each curve whose value is known."""
        self._run.log(metrics.known(), step=metrics.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
