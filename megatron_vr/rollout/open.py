"""From the engine settings to a working engine."""

from __future__ import annotations

from pathlib import Path

from megatron_vr.config.settings import EngineSettings
from megatron_vr.rollout.engine import Engine


def open_engine(settings: EngineSettings, model: Path, dtype: str) -> Engine:
    """The engine of `settings.kind` serving the Hugging Face folder `model`."""
    from megatron_vr.rollout.embedded import EmbeddedEngine

    return EmbeddedEngine(model, dtype=dtype, batch_size=settings.batch_size)
