"""The fake-quantised model computes with the very scales that are written, whatever its values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_vr.convert.fp8_reload import from_fp8, to_fp8
from megatron_vr.convert.fp8_scales import calibrate
from tests.models.reference import tiny_model

DOWN = "model.layers.0.mlp.down_proj"
IDS = [tuple(range(1, 30)), tuple(range(60, 80))]


def small(dtype: torch.dtype = torch.float32) -> Any:
    return tiny_model("qwen3", False, num_hidden_layers=1).to(dtype)


def awkward() -> float:
    """A float32 that is not 448 times its own 448th part."""
    values = torch.linspace(3.0, 4.0, 1000)
    lost = values[values / 448 * 448 != values]
    assert len(lost), "every value survives: the test tests nothing"
    return float(lost[0])


def test_the_model_quantises_with_the_scale_that_is_written() -> None:
    model = small()
    with torch.no_grad():
        model.get_submodule(DOWN).weight[3, 5] = awkward()
    scales = calibrate(model, IDS)
    for name, scale in scales.items():
        module = model.get_submodule(name)
        for quantizer, value in (
            (module.weight_quantizer, scale.weight),
            (module.input_quantizer, scale.input),
        ):
            assert float(torch.tensor(value)) == value, "the scale is no float32"
            assert float(quantizer.amax) == float(torch.tensor(value) * 448), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_modelopt_rounds_as_the_writer_does(dtype: torch.dtype) -> None:
    """Bit for bit: a last bit of difference would grow from layer to layer."""
    model = small(dtype)
    for name, scale in calibrate(model, IDS).items():
        module, value = model.get_submodule(name), torch.tensor(scale.weight)
        weight = module.weight.detach()
        assert module.weight_quantizer.amax.dtype == torch.float32
        theirs = module.weight_quantizer(weight)
        assert theirs.equal(from_fp8(to_fp8(weight, value), value, dtype)), name


def test_a_matrix_of_zeros_has_a_scale_that_can_be_divided_by() -> None:
    model = small()
    with torch.no_grad():
        model.get_submodule(DOWN).weight.zero_()
    scales = calibrate(model, IDS)
    assert scales[DOWN].weight == 1.0
    assert bool(model(torch.tensor([IDS[0]])).logits.isfinite().all())


def test_calibration_keeps_standard_output_to_its_caller(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calibrate(small(), IDS)
    assert capsys.readouterr().out == ""
