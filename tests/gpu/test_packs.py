"""Sequences of a pack do not see each other, nor the padding behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import Measured
from tests.gpu.models import (
    backward,
    distance,
    gradients,
    megatron_model,
    one_by_one,
    packed,
    reference,
    sequences,
    write_model,
)
from tests.gpu.place import Place


@pytest.mark.parametrize("align", [1, 16, 128])
def test_a_pack_gives_what_its_sequences_give_alone(
    align: int, tmp_path: Path, place: Place, measured: Measured
) -> None:
    folder, ids = write_model(place, tmp_path), sequences()
    exact, low = (reference(folder, place, dtype) for dtype in (torch.float32, torch.bfloat16))
    model = megatron_model(folder, place)
    with torch.no_grad():
        expected, theirs = one_by_one(exact, ids), one_by_one(low, ids)
        alone = torch.cat([packed(model, [one], place, align) for one in ids])
        found = packed(model, ids, place, align)
        turned = torch.cat(
            [packed(model, [*ids[3:], *ids[:3]], place, align).split(_targets(ids[3:]))[1]]
        )
    limit = 2 * float((theirs - expected).abs().max())
    largest = {
        "pack against alone": float((found - alone).abs().max()),
        "pack against float32": float((found - expected).abs().max()),
        "turned against float32": float((turned - expected[: len(turned)]).abs().max()),
    }
    measured(largest_difference=largest, limit=limit)
    assert max(largest.values()) < limit


def test_padding_adds_nothing_to_a_gradient(
    tmp_path: Path, place: Place, measured: Measured
) -> None:
    folder, ids = write_model(place, tmp_path), sequences()
    found = {}
    for align in (1, 128):
        model = megatron_model(folder, place)
        backward(packed(model, ids, place, align))
        found[align] = gradients(model, folder)
    exact, low = (reference(folder, place, dtype) for dtype in (torch.float32, torch.bfloat16))
    for model in (exact, low):
        backward(one_by_one(model, ids))
    worst = {}
    for name, parameter in exact.named_parameters():
        theirs = distance(low.get_parameter(name).grad, parameter.grad)
        worst[name] = distance(found[128][name], found[1][name]) / theirs
    measured(worst_in_transformers_own_error=max(worst.values()))
    assert max(worst.values()) < 2, max(worst, key=worst.__getitem__)


def test_a_pack_of_one_token_sequences_is_computed(tmp_path: Path, place: Place) -> None:
    """What a rank gets that has no example: one place without a target."""
    folder = write_model(place, tmp_path)
    model = megatron_model(folder, place)
    found = packed(model, sequences([1, 1, 1]), place)
    assert found.shape == (0,)
    found.sum().backward()
    gradient = model.embedding.word_embeddings.weight.grad
    assert gradient is None or not gradient.any()


def _targets(ids: list[torch.Tensor]) -> list[int]:
    return [sum(len(one) - 1 for one in ids), sum(len(one) - 1 for one in sequences()[:3])]
