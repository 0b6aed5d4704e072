"""Layouts that a model with experts cannot have are refused, those it can are not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture, Experts
from megatron_vr.parallel.layout import Layout, check_layout

EXPERTS = Experts(count=6, per_token=2, ffn_hidden_size=20, normalised=True)
MODEL = Architecture(
    family="qwen3_moe",
    hidden_size=64,
    # Of no layer: nothing needs to divide it.
    ffn_hidden_size=97,
    layers=12,
    heads=8,
    kv_heads=8,
    head_dim=16,
    vocab_size=100,
    max_positions=64,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied=False,
    experts=EXPERTS,
)


@pytest.mark.parametrize(
    ("layout", "world"),
    [
        (Layout(), 5),
        (Layout(tensor=4, sequence_parallel=True), 4),
        (Layout(pipeline=2, virtual_pipeline=3), 4),
        (Layout(tensor=2, context=2, sequence_parallel=True), 8),
    ],
)
def test_a_layout_that_divides_the_experts_widths_is_accepted(layout: Layout, world: int) -> None:
    check_layout(layout, MODEL, world)


def test_tensor_ranks_must_split_the_activations_too() -> None:
    with pytest.raises(SettingsError, match=r"parallel\.tensor=2 .*set parallel\.sequence=true"):
        check_layout(Layout(tensor=2), MODEL, 2)
    check_layout(Layout(tensor=2), replace(MODEL, experts=None, ffn_hidden_size=98), 2)


def test_tensor_ranks_must_divide_an_experts_units() -> None:
    layout = Layout(tensor=8, sequence_parallel=True)
    with pytest.raises(SettingsError, match=r"parallel\.tensor=8 .* 20 MLP units of an expert"):
        check_layout(layout, MODEL, 8)
