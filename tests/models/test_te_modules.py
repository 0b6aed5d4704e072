"""What is set on Transformer Engine's modules, with small modules that have the attributes of its
own: it cannot be imported here."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from megatron_vr.models.te_modules import (
    TRUST,
    fillable,
    fuse_weight_gradients,
    keeps_scales,
    own_extra_state,
    quantised,
    replaced,
    with_extra_state,
    without_extra_state,
)


class Product(nn.Module):
    """A linear layer as Transformer Engine's: it fuses if told to, and has a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fuse_wgrad_accumulation = False
        self.weight = nn.Parameter(torch.ones(4, 2))
        self.bias = nn.Parameter(torch.zeros(4))
        self.state: Any = "its own"

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        if state is not None:
            self.state = state


class Coarse(nn.Parameter):
    """Keeps a multiple of a 448th of its largest value, like a tensor with one scale."""

    kept: torch.Tensor | None = None
    copies = 0

    def quantize_(self, value: torch.Tensor) -> None:
        step = value.abs().max() / 448
        self.data = (value / step).round() * step

    def copy_(self, value: torch.Tensor, *args: Any) -> Coarse:  # type: ignore[override]
        self.copies += 1
        self.quantize_(value)
        return self

    def get_high_precision_init_val(self) -> torch.Tensor | None:
        return self.kept


def coarse(kept: torch.Tensor | None = None) -> tuple[nn.Module, Coarse]:
    model = Product()
    parameter = Coarse(torch.zeros(4, 2))
    parameter.kept = kept
    model.weight = parameter
    return nn.Sequential(model, nn.Linear(4, 4)), parameter


def test_products_add_to_main_grad_by_themselves_once_there_is_one() -> None:
    first, second, other = Product(), Product(), nn.Linear(4, 4)
    model = nn.Sequential(first, other, nn.Sequential(second))
    for product in (first, second):
        product.weight.main_grad = torch.zeros(4, 2)  # type: ignore[attr-defined]
    assert fuse_weight_gradients([model]) == 2
    assert first.fuse_wgrad_accumulation
    assert second.fuse_wgrad_accumulation
    assert not hasattr(other, "fuse_wgrad_accumulation")


def test_a_model_that_is_not_wrapped_cannot_have_its_gradients_fused() -> None:
    with pytest.raises(ValueError, match="that DDP has wrapped"):
        fuse_weight_gradients([Product()])


def test_a_model_without_transformer_engine_has_nothing_to_fuse() -> None:
    assert fuse_weight_gradients([nn.Linear(2, 2)]) == 0


def test_parts_that_are_written_one_by_one_get_the_scale_of_the_whole() -> None:
    model, parameter = coarse()
    values = torch.tensor([[1.0, 0.5], [0.25, 0.125], [100.0, 50.0], [25.0, 12.5]])
    with fillable(model), torch.no_grad():
        weight = dict(model.named_parameters())["0.weight"]
        assert not hasattr(weight, "quantize_")
        weight[:2] = values[:2]
        weight[2:] = values[2:]
        assert parameter.copies == 0
    assert parameter.copies == 1
    assert dict(model.named_parameters())["0.weight"] is parameter
    assert torch.equal(parameter.data, (values / (100 / 448)).round() * (100 / 448))


def test_the_value_that_main_weights_begin_with_is_not_rounded() -> None:
    kept = torch.zeros(4, 2)
    model, parameter = coarse(kept)
    values = torch.linspace(0.01, 1.7, 8).view(4, 2)
    with fillable(model), torch.no_grad():
        dict(model.named_parameters())["0.weight"].copy_(values)
    assert torch.equal(kept, values)
    assert not torch.equal(parameter.data, values)


def test_what_fails_while_it_fills_leaves_the_model_as_it_was() -> None:
    model, parameter = coarse()
    with pytest.raises(RuntimeError, match="half"), fillable(model):
        raise RuntimeError("half")
    assert dict(model.named_parameters())["0.weight"] is parameter
    assert parameter.copies == 0


def test_only_parameters_in_fp8_are_replaced_and_their_order_stays() -> None:
    model, parameter = coarse()
    assert [(name, found) for _, name, found in quantised(model)] == [("weight", parameter)]
    before = dict(model.named_parameters())
    with replaced(model, lambda found: torch.full(found.shape, 3.0)):
        inside = dict(model.named_parameters())
        assert list(inside) == list(before)
        assert [name for name in before if inside[name] is not before[name]] == ["0.weight"]
        assert torch.equal(inside["0.weight"], torch.full((4, 2), 3.0))
        assert not inside["0.weight"].requires_grad
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_state_without_scales_loads_into_a_module_that_keeps_its_own() -> None:
    source, target = Product(), nn.Sequential(Product())
    source.state = "another's"
    state = without_extra_state(nn.Sequential(source).state_dict())
    assert set(state) == {"0.weight", "0.bias"}
    target.load_state_dict(with_extra_state(target, state))
    assert target[0].state == "its own"


def test_a_state_with_scales_gives_them() -> None:
    source, target = Product(), nn.Sequential(Product())
    source.state = "another's"
    state = nn.Sequential(source).state_dict()
    target.load_state_dict(with_extra_state(target, state))
    assert target[0].state == "another's"


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_pickled_scales_are_read_from_a_trainings_own_checkpoint_alone(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRUST, raising=False)
    if before is not None:
        monkeypatch.setenv(TRUST, before)
    with pytest.raises(RuntimeError, match="unreadable"), own_extra_state():
        assert os.environ[TRUST] == "1"
        raise RuntimeError("unreadable")
    assert os.environ.get(TRUST) == before


@pytest.mark.parametrize(
    ("fp8", "recipe", "kept"),
    [(None, "delayed", False), ("hybrid", "tensorwise", False), ("hybrid", "delayed", True)],
)
def test_scales_of_the_delayed_recipe_alone_follow_from_the_steps_before(
    fp8: str | None, recipe: str, kept: bool
) -> None:
    assert keeps_scales(SimpleNamespace(fp8=fp8, fp8_recipe=recipe)) is kept
