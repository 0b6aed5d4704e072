"""Whether the base model can be built and split as the settings ask, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.config.settings import RandomModel, Settings
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.parallel.layout import check_layout
from megatron_vr.problems.toy_tokenizer import make_tokenizer


def check_model(settings: Settings, processes: int) -> None:
    """Raise SettingsError or CheckpointError for a base that does not fit the settings.

    A base named by its hub id is checked once it is here, by the `base` stage.
    """
    architecture = architecture_of(settings)
    if architecture is not None:
        check_architecture(settings, architecture, processes)


def check_architecture(settings: Settings, architecture: Architecture, processes: int) -> None:
    """Raise SettingsError where a base of `architecture` does not fit the settings."""
    check_layout(layout_of(settings), architecture, processes)
    for name in ("rollouts", "traces", "answers", "evaluation"):
        asked = getattr(settings, name).max_new_tokens
        if asked >= architecture.max_positions:
            raise SettingsError(
                f"{name}.max_new_tokens is {asked}, but the model's context is "
                f"{architecture.max_positions} tokens; lower it or take another base"
            )


def architecture_of(settings: Settings) -> Architecture | None:
    """The base's architecture; None where it is not on this disk yet."""
    if settings.model.random is not None:
        return _of_random(settings.model.random)
    folder = Path(str(settings.model.path))
    return read_architecture(folder) if folder.is_dir() else None


def _of_random(shape: RandomModel) -> Architecture:
    return Architecture(
        family="qwen3",
        hidden_size=shape.hidden_size,
        ffn_hidden_size=shape.ffn_hidden_size,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab_size=len(make_tokenizer()),
        max_positions=shape.max_positions,
        rope_theta=10_000.0,
        norm_eps=1e-6,
        tied=shape.tied,
    )
