"""Megatron's process groups for a stage: opened once per process, for one layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.config.settings import ModelSettings, Settings
from megatron_vr.parallel.layout import Layout
from megatron_vr.parallel.world import World


@dataclass(frozen=True)
class Megatron:
    """This rank's place in the layout."""

    model_settings: ModelSettings
    layout: Layout
    data_rank: int
    data_size: int
    writes: bool  # the one rank of its data-parallel replica that writes the result

    def load(self, folder: Path) -> list[Any]:
        """The Hugging Face model in `folder` as this rank's Megatron chunks, ready to score."""
        from megatron_vr.convert.load import load_hf
        from megatron_vr.models.architecture import read_architecture
        from megatron_vr.models.gpt import build_model
        from megatron_vr.models.support import check_build

        architecture = read_architecture(folder)
        check_build(self.model_settings, architecture, self.layout, training=False)
        models = build_model(
            architecture,
            self.layout,
            spec=self.model_settings.spec,
            dtype=self.model_settings.dtype,
            recompute="none",
            log_prob_chunk=self.model_settings.log_prob_chunk,
            attention=self.model_settings.attention,
        )
        load_hf(models, folder, architecture)
        return [model.eval() for model in models]


def told_of_scoring(settings: Settings, folder: Path) -> str:
    """Which layers score the model in `folder`, and in what precision, in a line."""
    from megatron_vr.models.architecture import read_architecture
    from megatron_vr.models.parts import transformer_engine_version
    from megatron_vr.parallel.launch import has_gpu
    from megatron_vr.training.resolved import Base, described, resolved_scoring

    base = Base(settings.model, read_architecture(folder), layout_of(settings), has_gpu())
    tokens = settings.scoring.micro_batch_tokens
    built = resolved_scoring(base, micro_batch_tokens=tokens)
    return described(built, transformer_engine_version())


def layout_of(settings: Settings) -> Layout:
    """The layout that the `parallel` settings ask for."""
    parallel = settings.parallel
    return Layout(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        context=parallel.context,
        virtual_pipeline=parallel.virtual_pipeline,
        sequence_parallel=parallel.sequence,
    )


def open_megatron(settings: Settings, world: World) -> Megatron:
    """Initialise Megatron for `settings` where that has not been done; this rank's place in it."""
    import torch
    from megatron.core import parallel_state

    from megatron_vr.parallel.layout import initialise, join_world

    layout = layout_of(settings)
    if not parallel_state.model_parallel_is_initialized():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        join_world(settings.parallel.timeout_minutes)
        initialise(layout, settings.run.seed, device, settings.parallel.timeout_minutes)
    return Megatron(
        model_settings=settings.model,
        layout=layout,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        writes=parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_context_parallel_rank() == 0
        and parallel_state.is_pipeline_last_stage(ignore_virtual=True),
    )
