"""What cannot be built with the parts at hand, told before weights are read."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from megatron.core.models.common.language_module.language_module import LanguageModule
from megatron.core.transformer.enums import AttnBackend

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.config.settings import ModelSettings
from megatron_vr.config.spec_choice import Spec
from megatron_vr.errors import SettingsError
from megatron_vr.models import support
from megatron_vr.models.architecture import Architecture, Experts
from megatron_vr.models.gpt import build_model, transformer_config
from megatron_vr.models.known import known_architecture, shipped_models
from megatron_vr.models.parts import ATTENTION_SWITCHES, Parts
from megatron_vr.models.support import build_faults, check_build, layer_widths, untested
from megatron_vr.parallel.layout import Layout

# The machine that this package is made for, with nothing optional.
H100 = Parts(
    megatron="0.19.2",
    torch="2.11.0",
    transformer_engine="2.20.2",
    cuda="13.0",
    cudnn="9.19.0",
    capability=(9, 0),
)

TINY = Architecture(
    family="qwen3",
    hidden_size=128,
    ffn_hidden_size=256,
    layers=4,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocab_size=131,
    max_positions=256,
    rope_theta=1e4,
    norm_eps=1e-6,
    tied=False,
)
EXPERTS = Experts(count=4, per_token=2, ffn_hidden_size=64, normalised=True)


def faults(
    architecture: Architecture = TINY,
    layout: Layout = Layout(),  # noqa: B008 - frozen
    parts: Parts = H100,
    spec: Spec = "te",
    **settings: Any,
) -> list[str]:
    model = ModelSettings.model_validate(
        {"path": "some/model", "spec": spec, "dtype": "bfloat16"} | settings
    )
    return list(build_faults(model, spec, architecture, layout, parts))


def only(*args: Any, **kwargs: Any) -> str:
    found = faults(*args, **kwargs)
    assert len(found) == 1, found
    assert "\n" not in found[0]
    return found[0]


@pytest.mark.parametrize("recipe", [None, "tensorwise", "delayed", "blockwise"])
@pytest.mark.parametrize("name", shipped_models())
def test_every_shipped_model_can_be_built_on_hopper(
    name: str, recipe: str | None, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    architecture = known_architecture(name)
    for tensor in (1, 2, 4, 8):
        if architecture.heads % tensor == 0 and architecture.kv_heads % tensor == 0:
            layout = Layout(tensor=tensor, context=2, sequence_parallel=tensor > 1)
            assert faults(architecture, layout, fp8=recipe) == []


@pytest.mark.parametrize(
    "parts",
    [
        replace(H100, transformer_engine="2.12.0", cudnn="9.10.2", megatron="0.16.1"),
        replace(H100, capability=(8, 9), flash_attn="2.8.1"),
        replace(H100, cudnn=None, cuda=None),
    ],
    ids=["older", "Ada with flash-attn", "versions unknown"],
)
def test_other_machines_that_can_have_no_fault(parts: Parts) -> None:
    attention = "flash" if parts.flash_attn else "fused"
    assert faults(parts=parts, attention=attention, fp8="tensorwise") == []


def test_plain_layers_ask_nothing_of_a_machine() -> None:
    bare = Parts(megatron="0.16.1", torch="2.13.0")
    assert faults(spec="plain", parts=bare, architecture=replace(TINY, head_dim=31)) == []


def test_without_transformer_engine_the_extra_to_install_is_named() -> None:
    told = only(parts=replace(H100, transformer_engine=None), fp8="blockwise")
    assert "megatron-vr[gpu]" in told
    assert "model.spec: plain" in told
    model = ModelSettings(path="some/model")
    (fault,) = build_faults(model, "te", TINY, Layout(), replace(H100, transformer_engine=None))
    assert "model.spec is auto, which means te on GPUs," in fault


def test_an_older_transformer_engine_than_the_extra_installs_is_named() -> None:
    assert "2.7.0" in only(parts=replace(H100, transformer_engine="2.7.0"))


def test_transformer_engine_without_a_gpu_is_refused() -> None:
    assert "GPUs alone" in only(parts=replace(H100, capability=None), fp8="delayed")


@pytest.mark.parametrize(
    ("recipe", "parts", "told"),
    [
        ("tensorwise", {"capability": (8, 6)}, "no FP8 products"),
        ("blockwise", {"capability": (8, 9)}, "no products of scaled blocks"),
        ("blockwise", {"cuda": "12.8"}, "CUDA 12.9"),
        ("blockwise", {"capability": (12, 0)}, "issue 2382"),
    ],
)
def test_a_device_without_the_recipes_products_is_refused(
    recipe: str, parts: dict[str, Any], told: str
) -> None:
    there = replace(H100, flash_attn="2.8.1", **parts)
    assert told in only(parts=there, attention="flash", fp8=recipe)


def test_other_devices_than_hopper_are_called_untested_and_not_refused() -> None:
    blackwell = replace(H100, capability=(10, 0), cudnn="9.25.0")
    model = ModelSettings(path="some/model", fp8=Fp8Settings(recipe="tensorwise"))
    assert faults(parts=blackwell, fp8="tensorwise") == []
    (note,) = untested(model, "te", blackwell)
    assert "compute capability 10.0" in note
    assert list(untested(model, "te", H100)) == []
    assert list(untested(model, "plain", blackwell)) == []


# Attention


@pytest.mark.parametrize("attention", ["fused", "flash"])
def test_switches_of_the_environment_are_refused_exactly_where_megatron_refuses_them(
    attention: Any,
) -> None:
    config = SimpleNamespace(attention_backend=AttnBackend[attention], flash_attention_version=None)
    for values in product((None, "0", "1"), repeat=3):
        switches = tuple(
            (name, value)
            for name, value in zip(ATTENTION_SWITCHES, values, strict=True)
            if value is not None
        )
        there = replace(H100, flash_attn="2.8.3", attention_switches=switches)
        others = {k: v for k, v in os.environ.items() if k not in ATTENTION_SWITCHES}
        with mock.patch.dict(os.environ, {**others, **dict(switches)}, clear=True):
            try:
                LanguageModule._set_attention_backend(SimpleNamespace(config=config))
                refused = False
            except AssertionError:
                refused = True
        for spec in ("te", "plain"):
            found = faults(parts=there, attention=attention, spec=spec)  # type: ignore[arg-type]
            assert bool(found) == refused, switches
            assert all("unset it" in fault for fault in found)


@pytest.mark.parametrize(
    ("parts", "architecture", "told"),
    [
        ({"capability": (7, 5)}, {}, "no kernels of attention in bfloat16"),
        ({"capability": (8, 0)}, {}, "only from 9.0 on"),
        ({"capability": (12, 0), "transformer_engine": "2.17.0"}, {}, "wrong gradients of packs"),
        ({"cudnn": "9.5.1"}, {}, "9.6 or later"),
        ({"cudnn": "9.0.0"}, {"kv_heads": 4}, "9.1 or later"),
        ({"cudnn": "9.10.0"}, {}, "known faults"),
        ({"cudnn": "9.10.1"}, {}, "known faults"),
        ({}, {"head_dim": 36}, "multiples of 8"),
        ({}, {"head_dim": 264}, "up to 256"),
        ({"cudnn": "9.4.0"}, {"head_dim": 256, "kv_heads": 4}, "does not train"),
    ],
)
def test_attention_without_a_fused_kernel_is_refused(
    parts: dict[str, Any], architecture: dict[str, Any], told: str
) -> None:
    assert told in only(replace(TINY, **architecture), parts=replace(H100, **parts))


def test_packs_without_grouped_heads_take_an_older_cudnn() -> None:
    older = replace(H100, cudnn="9.5.1")
    assert faults(replace(TINY, kv_heads=4), parts=older) == []
    assert faults(replace(TINY, kv_heads=4, head_dim=256), parts=older) == []


@pytest.mark.parametrize(
    ("engine", "flash_attn", "taken"),
    [
        ("2.20.2", None, False),
        ("2.20.2", "2.0.9", False),
        ("2.20.2", "2.8.3.post1", True),
        ("2.20.2", "2.8.4", False),
        ("2.12.0", "2.8.3", True),
        ("2.12.0", "2.8.3.post1", False),
        ("2.8.0", "2.8.2", False),
        ("2.8.0", "2.1.1", True),
        ("2.30.0", "2.9.0", True),
    ],
)
def test_flash_attention_takes_a_flash_attn_that_transformer_engine_takes(
    engine: str, flash_attn: str | None, taken: bool
) -> None:
    there = replace(H100, transformer_engine=engine, flash_attn=flash_attn)
    found = faults(parts=there, attention="flash")
    assert (found == []) == taken
    assert all("flash-attn is" in fault for fault in found)
    hopper = replace(there, flash_attn_3="3.0.0")
    assert faults(parts=hopper, attention="flash") == []
    ada = replace(hopper, capability=(8, 9))
    assert (faults(parts=ada, attention="flash") == []) == taken


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_attention_in_fp8_takes_no_packs_up_to_hopper(recipe: str) -> None:
    fp8 = {"recipe": recipe, "attention": True}
    assert "no GPU before Blackwell" in only(fp8=fp8)
    blackwell = replace(H100, capability=(10, 0), cudnn="9.23.0")
    assert faults(parts=blackwell, fp8=fp8) == []
    assert "here is cuDNN 9.19.0" in only(parts=replace(blackwell, cudnn="9.19.0"), fp8=fp8)
    old = replace(blackwell, transformer_engine="2.18.0")
    assert "here is Transformer Engine 2.18.0" in only(parts=old, fp8=fp8)


# Shape and layout


def test_layers_in_bfloat16_leave_one_in_fp8() -> None:
    fp8 = {"recipe": "blockwise", "first_layers_bf16": 2, "last_layers_bf16": 2}
    assert "none is left in FP8" in only(fp8=fp8)
    assert faults(replace(TINY, layers=5), fp8=fp8) == []


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, None), (2, None), (4, None), (2, 2), (4, 2)])
def test_layers_in_bfloat16_are_refused_where_megatron_refuses_them(
    pipeline: int, virtual: int | None
) -> None:
    layout = Layout(pipeline=pipeline, virtual_pipeline=virtual)
    architecture = replace(TINY, layers=8)
    options: dict[str, Any] = {"spec": "plain", "dtype": "bfloat16", "recompute": "none"}
    for first, last in product(range(6), repeat=2):
        if not 0 < first + last < 8:
            continue
        fp8 = Fp8Settings(recipe="tensorwise", first_layers_bf16=first, last_layers_bf16=last)
        try:
            transformer_config(architecture, layout, fp8=fp8, **options)
            refused = False
        except ValueError as error:
            assert "in_bf16" in str(error)
            refused = True
        assert bool(faults(architecture, layout, fp8=fp8)) == refused, (first, last)


@pytest.mark.usefixtures("megatron")
def test_the_widths_are_those_of_the_matrices_that_megatron_builds() -> None:
    options: dict[str, Any] = {"dtype": "float32", "recompute": "none", "log_prob_chunk": 7}
    (model,) = build_model(TINY, Layout(), spec="plain", **options)
    widths = layer_widths(TINY, Layout())
    hidden, ffn = widths["hidden size"], widths["width of the MLP"]
    layer = dict(model.decoder.layers[0].named_parameters())
    assert layer["self_attention.linear_qkv.weight"].shape == (
        widths["width of queries, keys and values"],
        hidden,
    )
    assert layer["self_attention.linear_proj.weight"].shape == (hidden, widths["width of queries"])
    assert layer["mlp.linear_fc1.weight"].shape == (2 * ffn, hidden)
    assert layer["mlp.linear_fc2.weight"].shape == (hidden, ffn)


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed", "blockwise"])
def test_fp8_products_take_widths_of_16(recipe: str) -> None:
    assert "hidden size is 120" in only(replace(TINY, hidden_size=120), fp8=recipe)
    assert "width of the MLP is 72" in only(
        replace(TINY, ffn_hidden_size=144), Layout(tensor=2), fp8=recipe
    )
    narrow = replace(TINY, heads=2, kv_heads=2, head_dim=24)
    assert len(faults(narrow, Layout(tensor=2), fp8=recipe)) == 2
    assert faults(narrow, Layout(tensor=2)) == []


def test_whole_blocks_of_128_are_not_asked_of_a_width() -> None:
    assert faults(replace(TINY, hidden_size=144, ffn_hidden_size=336), fp8="blockwise") == []


def test_before_2_14_blocks_with_sequence_parallelism_take_hidden_sizes_of_128() -> None:
    layout = Layout(tensor=2, sequence_parallel=True)
    odd, old = replace(TINY, hidden_size=192), replace(H100, transformer_engine="2.12.0")
    assert "multiples of 128, not for 192" in only(odd, layout, old, fp8="blockwise")
    assert faults(odd, layout, fp8="blockwise") == []
    assert faults(TINY, layout, old, fp8="blockwise") == []
    assert faults(odd, layout, old, fp8="tensorwise") == []
    assert faults(odd, replace(layout, sequence_parallel=False), old, fp8="blockwise") == []


def test_experts_train_in_fp8() -> None:
    experts = replace(TINY, experts=EXPERTS)
    for recipe in ("tensorwise", "delayed", "blockwise"):
        assert faults(experts, fp8=recipe) == []
        assert faults(experts, Layout(tensor=2, sequence_parallel=True), fp8=recipe) == []
    narrow = replace(TINY, experts=replace(EXPERTS, ffn_hidden_size=24))
    assert "width of the MLP is 24" in only(narrow, fp8="tensorwise")


def test_before_2_12_experts_in_blocks_are_not_split() -> None:
    experts, layout = replace(TINY, experts=EXPERTS), Layout(tensor=2, sequence_parallel=True)
    old = replace(H100, transformer_engine="2.10.0")
    assert "issue 1863" in only(experts, layout, old, fp8="blockwise")
    assert faults(experts, Layout(), old, fp8="blockwise") == []
    assert faults(experts, layout, old, fp8="tensorwise") == []


def test_fp8_weights_take_a_megatron_that_renews_their_transposes() -> None:
    fp8 = {"recipe": "tensorwise", "params": True}
    for version in ("0.16.1", "0.17.1"):
        told = only(parts=replace(H100, megatron=version), fp8=fp8)
        assert version in told
        assert "0.18 or later" in told
    assert faults(fp8=fp8) == []
    assert faults(parts=replace(H100, megatron="0.18.0"), fp8=fp8) == []


# At start-up


def test_all_reasons_are_told_in_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    there = replace(H100, cuda="12.6", cudnn="9.5.0")
    monkeypatch.setattr(support, "find_parts", lambda: there)
    model = ModelSettings(path="some/model", dtype="bfloat16", fp8=Fp8Settings(recipe="blockwise"))
    with pytest.raises(SettingsError) as caught:
        check_build(model, TINY, Layout(), training=True)
    assert len(str(caught.value).splitlines()) == 2


def test_a_model_that_only_scores_has_no_fp8_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "find_parts", lambda: replace(H100, cuda="12.6"))
    model = ModelSettings(path="some/model", dtype="bfloat16", fp8=Fp8Settings(recipe="blockwise"))
    check_build(model, TINY, Layout(), training=False)


def test_on_this_host_plain_layers_pass() -> None:
    with mock.patch.dict(os.environ):
        for name in ATTENTION_SWITCHES:
            os.environ.pop(name, None)
        check_build(ModelSettings(path="some/model", spec="plain"), TINY, Layout(), training=True)
