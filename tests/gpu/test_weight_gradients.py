"""Weight gradients that the products add up in float32 themselves are those that DDP adds up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vr.config.settings import OptimizerSettings
from megatron_vr.models.te_modules import te_linears
from megatron_vr.training.optimizer import build_optimizer
from megatron_vr.training.update import Weighted, update, wrap_models
from tests.gpu.conftest import Measured
from tests.gpu.models import (
    HALF_SPACING,
    distance,
    megatron_model,
    one_by_one,
    pack,
    reference,
    sequences,
    write_model,
)
from tests.gpu.place import Place

# Three packs: the first begins the sums, the others add to them.
PACKS = ((60, 3, 1), (5, 4, 17), (2, 101))


def summed(folder: Path, place: Place, fused: bool) -> tuple[Any, int]:
    """The model whose `main_grad` are those of all packs, and how many products add to them."""
    model = megatron_model(folder, place).train()
    wrapped = wrap_models([model])
    linears = list(te_linears([model]))
    if not fused:
        for linear in linears:
            linear.fuse_wgrad_accumulation = False  # type: ignore[assignment]
    optimizer = build_optimizer(wrapped, OptimizerSettings(), torch.bfloat16)
    batches = []
    for ids in split():
        batch = pack(ids, place)
        weights = torch.full((len(batch.targets),), -1.0, device=place.device)
        batches.append(Weighted(batch, weights))
    update(wrapped, optimizer, batches, normaliser=1.0, clip=math.inf)
    return model, sum(bool(linear.fuse_wgrad_accumulation) for linear in linears)


def split() -> list[list[torch.Tensor]]:
    ids = iter(sequences([length for lengths in PACKS for length in lengths]))
    return [[next(ids) for _ in lengths] for lengths in PACKS]


@pytest.mark.needs_gpu("plain layers have no such products")
def test_fused_weight_gradients_are_those_of_ddp(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    folder = write_model(place, tmp_path)
    (with_it, count), (without, none) = (summed(folder, place, how) for how in (True, False))
    assert (count, none) == (8, 0), "four products in each of two layers"
    others = dict(without.named_parameters())
    errors = {
        name: distance(parameter.main_grad, others[name].main_grad)
        for name, parameter in with_it.named_parameters()
    }
    worst = max(errors, key=errors.__getitem__)
    measured(largest_relative_difference=errors[worst], of=worst, limit=2 * HALF_SPACING)
    # Unfused, each pack's gradient is rounded to bfloat16 before it is added.
    assert errors[worst] < 2 * HALF_SPACING, worst


def test_gradients_summed_over_packs_are_those_of_transformers(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    folder = write_model(place, tmp_path)
    model, _ = summed(folder, place, fused=True)
    exact, low = (reference(folder, place, dtype) for dtype in (torch.float32, torch.bfloat16))
    for other in (exact, low):
        torch.stack([one_by_one(other, ids).sum() for ids in split()]).sum().backward()
    # Parameters that both have alike; a fused one is made of several of Transformers'.
    pairs = {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
        "decoder.layers.0.self_attention.linear_proj.weight": (
            "model.layers.0.self_attn.o_proj.weight"
        ),
        "decoder.layers.1.mlp.linear_fc2.weight": "model.layers.1.mlp.down_proj.weight",
        "decoder.layers.1.self_attention.q_layernorm.weight": (
            "model.layers.1.self_attn.q_norm.weight"
        ),
    }
    found = {}
    for ours, theirs in pairs.items():
        wanted = exact.get_parameter(theirs).grad
        off = distance(model.get_parameter(ours).main_grad, wanted)
        found[ours] = off, distance(low.get_parameter(theirs).grad, wanted)
    measured(error_and_that_of_transformers=found)
    for name, (off, of_theirs) in found.items():
        assert off < 2 * of_theirs, name
