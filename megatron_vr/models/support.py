"""Which models cannot be built, or are known to go wrong, with the parts installed here. Pure.

What settings alone tell is in `config.model_checks`.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_vr.config.settings import ModelSettings
from megatron_vr.config.spec_choice import Spec
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.parts import Parts
from megatron_vr.parallel.layout import Layout


def build_faults(
    model: ModelSettings,
    spec: Spec,
    architecture: Architecture,
    layout: Layout,
    parts: Parts,
) -> Iterator[str]:
    """One line for each conflict with the model's shape, its layout, or the installed `parts`."""
    yield from ()
