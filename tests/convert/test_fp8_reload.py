"""FP8 values are rounded once, files hold them whole, and another computation is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.fp8_reload import check_reload, difference, from_fp8, to_fp8
from megatron_vr.convert.fp8_scales import Scales
from megatron_vr.convert.fp8_writer import write_fp8
from megatron_vr.convert.hf_reader import HFWeights
from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import read_architecture
from tests.convert.small_release import write_source

ONE = torch.tensor(1.0)


def test_values_go_to_the_nearest_fp8_value_and_no_further_than_448() -> None:
    grid = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    grid = grid[grid.isfinite()]
    drawn = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 100
    values = torch.cat([drawn, torch.tensor([500.0, -9e9, 2.0**-11, 0.0])])
    nearest = grid[(values.double()[:, None] - grid).abs().argmin(1)]
    assert to_fp8(values, ONE).double().equal(nearest)


def test_bfloat16_values_are_rounded_once() -> None:
    """The quotient is just above 17/16, half way between 1 and 9/8; bfloat16 makes it 17/16."""
    values, scale = torch.full((2,), 15.9375, dtype=torch.bfloat16), torch.tensor(14.999)
    twice = (values / scale).to(torch.float8_e4m3fn)
    assert twice.tolist() == [1.0, 1.0], "bfloat16 does not reach the border: choose other values"
    assert to_fp8(values, scale).tolist() == [1.125, 1.125]


def test_dequantised_values_are_products_with_the_scale() -> None:
    codes = to_fp8(torch.linspace(-448, 448, 99), ONE)
    back = from_fp8(codes, torch.tensor(0.37), torch.float32)
    assert back.allclose(codes.float() * 0.37, rtol=3e-7, atol=0)


def logits(shift: float = 0.0) -> list[torch.Tensor]:
    drawn = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(1))
    noise = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(2))
    return list(drawn + shift * noise)


def test_differences_are_those_of_all_positions() -> None:
    ours = [torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[3.0, 0.0]])]
    theirs = [torch.tensor([[0.0, 1.5], [2.0, 4.0]]), torch.tensor([[3.0, 0.0]])]
    found = difference(ours, theirs)
    assert (found.mean_abs, found.max_abs) == (4.5 / 6, 4.0)
    assert found.top1_agreement == pytest.approx(2 / 3)


def test_a_reload_may_differ_by_a_hundredth_of_what_quantisation_does() -> None:
    quantised, effect = logits(), logits(shift=0.1)
    assert check_reload(quantised, quantised, effect).max_abs == 0.0
    check_reload(logits(shift=0.0009), quantised, effect)
    with pytest.raises(CheckpointError, match="do not compute what was quantised"):
        check_reload(logits(shift=0.002), quantised, effect)


def test_one_position_that_differs_is_found() -> None:
    reloaded = logits()
    reloaded[0][0, 0] += 0.05
    with pytest.raises(CheckpointError, match="Nothing was published"):
        check_reload(reloaded, logits(), logits(shift=0.1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reload_that_is_not_finite_is_refused(value: float) -> None:
    broken = [part.clone().fill_(value) for part in logits()]
    with pytest.raises(CheckpointError):
        check_reload(broken, logits(), logits(shift=0.1))


def test_shards_hold_together_what_one_file_holds(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "qwen3", True, torch.float32)
    architecture = read_architecture(source)
    scales = {"model.layers.1.mlp.up_proj": Scales(weight=0.01, input=0.5)}
    described = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    for name, size in (("one", 10**9), ("many", 50_000)):
        (tmp_path / name).mkdir()
        write_fp8(tmp_path / name, HFWeights(source), architecture, scales, described, size)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    parts = HFWeights(tmp_path / "many")
    assert len(parts.files) > 3
    assert all(len(load_file(f)) == 1 or f.stat().st_size < 60_000 for f in parts.files)
    assert parts.names() == set(whole)
    for name, tensor in whole.items():
        # Bytes, since FP8 has no comparison.
        same = parts.tensor(name).reshape(-1).view(torch.uint8)
        assert same.equal(tensor.reshape(-1).view(torch.uint8)), name
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
