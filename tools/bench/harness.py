"""What the benchmarks share: alternating runs, ratios of medians, tables, small models."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM


@dataclass(frozen=True)
class Result:
    """One comparison: `value` against the `goal` it should be at most, or at least."""

    name: str
    value: float
    goal: str
    detail: str = ""


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of `ours` and of `theirs`, run in turn so that both see the same machine.

    Each runs once before, unmeasured.
    """
    ours()
    theirs()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for taken, work in zip(seconds, (ours, theirs), strict=True):
            # What is still under way on a GPU is not this one's.
            _wait()
            began = time.perf_counter()
            work()
            _wait()
            taken.append(time.perf_counter() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def show(title: str, results: Sequence[Result], as_json: bool) -> None:
    """Print the results as a table, or as JSON."""
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    table = Table(title=title)
    for head in ("comparison", "ratio", "goal", ""):
        table.add_column(head)
    for result in results:
        table.add_row(result.name, f"{result.value:.3g}", result.goal, result.detail)
    Console().print(table)


def write_model(folder: Path, shape: Mapping[str, Any]) -> Path:
    """A Qwen3 of random weights and this `shape`, as a Hugging Face folder."""
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**shape)).save_pretrained(folder)
    return folder


def form_groups() -> None:
    """Megatron's process groups for this process alone."""
    from megatron_vr.parallel.layout import Layout, initialise, join_world

    join_world(timeout_minutes=10)
    initialise(Layout(), 1, "cuda" if torch.cuda.is_available() else "cpu")


def load_model(folder: Path) -> list[Any]:
    """The Hugging Face model in `folder` as Megatron's, in float32, on this process alone."""
    from megatron_vr.convert.load import load_hf
    from megatron_vr.models.architecture import read_architecture
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import Layout

    architecture = read_architecture(folder)
    models = build_model(
        architecture,
        Layout(),
        spec="plain",
        dtype="float32",
        recompute="none",
        log_prob_chunk="auto",
    )
    load_hf(models, folder, architecture)
    return list(models)
