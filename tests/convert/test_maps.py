"""The tables name every tensor of a family, and their arithmetic can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.families import FAMILIES
from megatron_vr.convert.maps import expected_tensors, parameters, source_shapes, split_layer
from megatron_vr.convert.transforms import to_hf, to_megatron
from megatron_vr.models.architecture import read_architecture
from tests.models.reference import tiny_model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_names_exactly_the_tensors_of_transformers(
    family: str, tied: bool, tmp_path: Path
) -> None:
    tiny_model(family, tied).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    assert expected_tensors(read_architecture(tmp_path)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_transform_is_undone_by_its_inverse(family: str, tmp_path: Path) -> None:
    tiny_model(family, False).config.save_pretrained(tmp_path)
    architecture = read_architecture(tmp_path)
    for weight, index in parameters(architecture):
        shapes = source_shapes(weight, index, architecture).values()
        sources = [torch.randn(shape) for shape in shapes]
        # Two rows more than the vocabulary has: the padding of tensor parallelism.
        rows = sum(source.shape[0] for source in sources) + 2 * (weight.transform == "vocab")
        parameter = to_megatron(weight.transform, sources, architecture, rows)
        assert parameter.shape[0] == rows, weight.megatron
        back = to_hf(weight.transform, parameter, architecture)
        for source, found in zip(sources, back, strict=True):
            assert source.equal(found), weight.megatron


def test_a_layer_number_is_split_from_a_checkpoint_key() -> None:
    assert split_layer("decoder.layers.12.mlp.linear_fc2.weight") == (
        "decoder.layers.mlp.linear_fc2.weight",
        (12,),
    )
    for key in ("decoder.layers.mlp.linear_fc2.weight", "decoder.final_layernorm.weight"):
        assert split_layer(key) == (key, ())
