"""From the engine settings to a working engine."""

from __future__ import annotations

from pathlib import Path

from megatron_vr.config.settings import EngineSettings
from megatron_vr.rollout.engine import Engine


def open_engine(settings: EngineSettings, model: Path) -> Engine:
    """The engine of `settings.kind` serving the Hugging Face folder `model`.

    Raises CheckpointError when the folder does not load.
    """
    from megatron_vr.rollout.batching import BatchLimits
    from megatron_vr.rollout.embedded import EmbeddedEngine

    limits = BatchLimits(rows=settings.batch_size, tokens=settings.batch_tokens)
    return EmbeddedEngine.load(model, limits=limits)
