"""Sampling settings and a prompt format → what an engine is asked for."""

from __future__ import annotations

from megatron_vr.config.settings import SamplingSettings
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.rollout.engine import Sampling, StopRule


def sampling_of(
    settings: SamplingSettings, prompts: PromptFormat, stop: StopRule | None = None
) -> Sampling:
    """Ends at an end token, at `stop`, or at `max_new_tokens`."""
    return Sampling(
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_new_tokens=settings.max_new_tokens,
        stop_token_ids=prompts.end_ids,
        stop=stop,
    )
