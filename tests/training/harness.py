"""Megatron's groups and models for a test's ranks, and a training that is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_vr.parallel.layout import Layout
from megatron_vr.training.metrics import StepMetrics
from tests.parallel.launch import dissolve


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
    from megatron_vr.parallel.layout import initialise

    initialise(layout, 1, "cpu")
    try:
        return function(*args)
    finally:
        dissolve()


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
