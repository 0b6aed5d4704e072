"""What is resolved is what is built: Megatron's own objects hold the same values."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.algorithm.megatron import Megatron
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import ModelSettings, OptimizerSettings
from megatron_vr.models.configuration import config_fields
from megatron_vr.models.known import known_architecture
from megatron_vr.models.log_prob import Targets
from megatron_vr.parallel.layout import Layout, destroy, initialise, join_world
from megatron_vr.training.built import resolved_job
from megatron_vr.training.micro_batch import pack_shape
from megatron_vr.training.resolved import (
    Base,
    Resolved,
    as_json,
    described,
    resolved_scoring,
    resolved_training,
)
from megatron_vr.training.stepper import Stepper
from tests.models.reference import tiny_model
from tests.training.jobs import job

GPT_ATTRIBUTES = {
    "vocab_size": "vocab_size",
    "true_vocab_size": "true_vocab_size",
    "max_sequence_length": "max_sequence_length",
    "share_embeddings_and_output_weights": "share_embeddings_and_output_weights",
    "position_embedding_type": "position_embedding_type",
    "rotary_base": "rotary_base",
    "rope_scaling": "rotary_scaling",
}


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """Megatron's process groups for this process alone, on the CPU."""
    join_world(timeout_minutes=1)
    initialise(Layout(), seed=1, device="cpu")
    yield
    destroy()


def held(fields: Any, built: Any) -> dict[str, Any]:
    """What the object `built` has for each of `fields`."""
    return {name: as_json(getattr(built, name)) for name in fields}


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"dtype": "bfloat16", "recompute": "full"}),
        ("qwen3", {"dtype": "float32", "overlap": True}),
        ("llama", {"dtype": "bfloat16", "recompute": "selective"}),
    ],
)
def test_a_training_is_built_as_resolved(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    tiny_model(family, family == "qwen2").save_pretrained(tmp_path / "model")
    training = job(tmp_path / "model", tmp_path / "run", **changes)
    told = resolved_job(training, on_gpu=False).as_json()
    stepper = Stepper(training)
    (wrapped,), optimizer = stepper.models, stepper.state.optimizer
    assert held(told["transformer"], wrapped.module.config) == told["transformer"]
    assert held(told["data_parallel"], wrapped.ddp_config) == told["data_parallel"]
    assert held(told["optimizer"], optimizer.config) == told["optimizer"]
    gpt = {key: as_json(getattr(wrapped.module, at)) for key, at in GPT_ATTRIBUTES.items()}
    assert gpt == {key: told["gpt"][key] for key in gpt}
    # A scaling factor is an argument that no attribute keeps; Llama's has a test of its own.
    assert set(told["gpt"]) - set(gpt) == {"rope_scaling_factor"}
    assert next(wrapped.parameters()).dtype == getattr(torch, told["dtype"])


@pytest.mark.usefixtures("megatron")
def test_scoring_is_built_as_resolved_whatever_the_training_is(tmp_path: Path) -> None:
    tiny_model("qwen3", True).save_pretrained(tmp_path)
    model = ModelSettings(path=str(tmp_path), spec="plain", dtype="bfloat16", recompute="full")
    place = Megatron(model, Layout(), data_rank=0, data_size=1, writes=True)
    (built,) = place.load(tmp_path)
    trained = resolved_job(job(tmp_path, tmp_path / "run", recompute="full"), on_gpu=False)
    base = Base(model, known_architecture(str(tmp_path)), Layout(), on_gpu=False)
    told = resolved_scoring(base, micro_batch_tokens=64).as_json()
    assert held(told["transformer"], built.config) == told["transformer"]
    assert built.config.recompute_granularity is None
    assert trained.transformer["recompute_granularity"] == "full"
    # And its log-probs are numbers of the type that is told, in a model of bfloat16.
    assert next(built.parameters()).dtype == torch.bfloat16
    ids = torch.zeros(1, 4, dtype=torch.long)
    found = built(ids, ids, None, labels=Targets(ids, torch.ones(1, 4, dtype=torch.bool)))
    assert found.dtype == getattr(torch, told["log_prob_reduction"])


LAYOUTS = (
    Layout(),
    Layout(tensor=4, sequence_parallel=True),
    Layout(tensor=2, context=2),
    Layout(tensor=4, context=2, sequence_parallel=True),
)


@pytest.mark.usefixtures("megatron")
@pytest.mark.parametrize("recipe", [None, "tensorwise", "blockwise"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_packs_are_padded_as_resolved(recipe: Any, layout: Layout) -> None:
    fp8 = None if recipe is None else Fp8Settings(recipe=recipe)
    base = base_of(fp8, layout)
    told = resolved_training(base, OptimizerSettings(), micro_batch_tokens=64, overlap=False)
    fields = config_fields(
        *(base.architecture, layout),
        # Its fields can be made where Transformer Engine is missing.
        **{"spec": "plain", "dtype": "bfloat16", "recompute": "none", "attention": "fused"},
        **{"fp8": fp8, "on_gpu": False},
    )
    shape = pack_shape(TransformerConfig(**fields))
    assert shape.multiple == told.sequence_multiple
    for places in ([1], [7, 90], [130, 5, 700]):
        total = int(shape.padded(np.array(places)).sum())
        assert total % told.pack_multiple == 0
        needed = shape.rounded(np.array(places)).sum()
        assert needed <= total < needed + told.pack_multiple


def base_of(fp8: Fp8Settings | None, layout: Layout | None = None, **changes: Any) -> Base:
    model = ModelSettings(**{"path": "x", "dtype": "bfloat16", "fp8": fp8, **changes})
    return Base(model, known_architecture("Qwen/Qwen3-4B-Base"), layout or Layout(), on_gpu=True)


def trained(base: Base) -> Resolved:
    return resolved_training(base, OptimizerSettings(), micro_batch_tokens=64, overlap=True)


def test_fp8_parameters_are_asked_of_model_gradients_and_optimizer_alike() -> None:
    fp8 = Fp8Settings(recipe="tensorwise", params=True)
    told = trained(base_of(fp8)).as_json()
    assert told["transformer"]["fp8_param"] is True
    assert told["data_parallel"]["fp8_param_gather"] is True
    assert told["optimizer"]["fp8_recipe"] == "tensorwise"
    assert told["fp8"]["format"] == "hybrid"
    assert "amax_history" not in told["fp8"]
    assert "amax_history" in trained(base_of(Fp8Settings(recipe="delayed"))).as_json()["fp8"]


def test_a_line_tells_whose_layers_and_why_these() -> None:
    fp8 = Fp8Settings(recipe="blockwise", last_layers_bf16=2, params=True)
    assert described(trained(base_of(fp8)), "2.20.2") == (
        "Transformer Engine 2.20.2 layers (auto: GPUs), bfloat16, FP8 blockwise e4m3, bfloat16 in "
        "the first 0 and the last 2 layers, parameters in FP8, cuDNN attention"
    )
    given = trained(base_of(None, spec="te", attention="flash"))
    assert described(given) == "Transformer Engine layers, bfloat16, flash-attn attention"
    cpu = Base(base_of(None, dtype="float32").model, base_of(None).architecture, Layout(), False)
    assert described(trained(cpu)) == "plain torch layers (auto: no GPU), float32"


def test_types_and_functions_have_names_and_nothing_else_slips_into_json() -> None:
    class Kind(enum.Enum):
        one = 5

    told = as_json({"b": torch.bfloat16, "a": (Kind.one, torch.nn.init.zeros_), "c": None})
    assert json.dumps(told) == '{"a": ["one", "zeros_"], "b": "bfloat16", "c": null}'
    with pytest.raises(TypeError, match="has no form in JSON"):
        as_json({"x": 1j})
