"""The cases that a run's settings make: its trainings and its scoring. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.algorithm.megatron import layout_of
from megatron_vr.cluster.planner.case import Case
from megatron_vr.config.settings import Settings
from megatron_vr.config.spec_choice import resolve_spec
from megatron_vr.models.architecture import Architecture


@dataclass(frozen=True)
class Model:
    """The base, and the settings that say how it is split and computed."""

    settings: Settings
    architecture: Architecture


def training_case(model: Model, processes: int, micro_batch_tokens: int) -> Case:
    """A training on `processes` ranks."""
    s = model.settings
    return Case(
        architecture=model.architecture,
        layout=layout_of(s),
        processes=processes,
        micro_batch_tokens=micro_batch_tokens,
        spec=resolve_spec(s.model.spec, on_gpu=True),
        dtype=s.model.dtype,
        fp8=s.model.fp8,
        recompute=s.model.recompute,
        log_prob_chunk=s.model.log_prob_chunk,
        overlap=s.parallel.overlap,
    )


def scoring_case(model: Model, processes: int) -> Case:
    """The log-prob pass on `processes` ranks: never in FP8, and nothing is recomputed."""
    s = model.settings
    return Case(
        architecture=model.architecture,
        layout=layout_of(s),
        processes=processes,
        micro_batch_tokens=s.scoring.micro_batch_tokens,
        spec=resolve_spec(s.model.spec, on_gpu=True),
        dtype=s.model.dtype,
        log_prob_chunk=s.model.log_prob_chunk,
    )
