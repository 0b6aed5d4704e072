"""Settings of a model that contradict each other, and those that do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vr.config.load import load_settings
from megatron_vr.config.model_checks import model_faults
from megatron_vr.config.settings import ModelSettings
from megatron_vr.config.spec_choice import Spec, resolve_spec

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


def faults(spec: Spec = "te", overlap: bool = False, **settings: Any) -> list[str]:
    model = ModelSettings.model_validate(
        {"path": "some/model", "spec": spec, "dtype": "bfloat16"} | settings
    )
    return list(model_faults(model, spec, overlap=overlap))


SOUND: list[dict[str, Any]] = [
    {},
    {"attention": "flash"},
    {"spec": "plain", "dtype": "float32"},
    {"spec": "plain"},
    {"fp8": "tensorwise"},
    {"fp8": "delayed"},
    {"fp8": "blockwise"},
    {"fp8": {"recipe": "tensorwise", "format": "e4m3"}},
    {"fp8": {"recipe": "blockwise", "format": "hybrid"}},
    {"fp8": {"recipe": "delayed", "amax_history": 16, "amax_algorithm": "most_recent"}},
    {"fp8": {"recipe": "blockwise", "first_layers_bf16": 1, "last_layers_bf16": 2}},
    {"fp8": {"recipe": "tensorwise", "params": True}, "overlap": True},
    {"fp8": {"recipe": "tensorwise", "attention": True}, "recompute": "full"},
    {"fp8": {"recipe": "delayed", "attention": True}},
    {"fp8": "tensorwise", "recompute": "selective"},
]


@pytest.mark.parametrize("settings", SOUND, ids=str)
def test_what_goes_together_has_no_fault(settings: dict[str, Any]) -> None:
    assert faults(**settings) == []


FAULTY: list[tuple[dict[str, Any], str]] = [
    ({"spec": "plain", "fp8": "tensorwise"}, "takes Transformer Engine's layers"),
    ({"dtype": "float32"}, "takes no packs in float32"),
    ({"spec": "plain", "attention": "flash"}, "has an attention of its own"),
    ({"fp8": "mxfp8"}, "use blockwise on Hopper"),
    ({"fp8": {"recipe": "delayed", "first_layers_bf16": 1}}, "first_layers_bf16 is 1"),
    ({"fp8": {"recipe": "delayed", "last_layers_bf16": 2}}, "last_layers_bf16 is 2"),
    ({"fp8": {"recipe": "tensorwise", "amax_history": 16}}, "amax_history is 16"),
    ({"fp8": {"recipe": "blockwise", "amax_algorithm": "most_recent"}}, "keeps no history"),
    ({"fp8": {"recipe": "tensorwise", "params": True}}, "set parallel.overlap: true"),
    ({"fp8": {"recipe": "blockwise", "attention": True}}, "blockwise scaling has no attention"),
    (
        {"fp8": {"recipe": "tensorwise", "attention": True}, "attention": "flash"},
        "flash-attn trains in bfloat16 only",
    ),
    (
        {"fp8": {"recipe": "delayed", "attention": True}, "recompute": "selective"},
        "computes attention again in bfloat16",
    ),
]


@pytest.mark.parametrize(("settings", "told"), FAULTY, ids=[told for _, told in FAULTY])
def test_each_conflict_is_one_line_that_says_what_to_do(
    settings: dict[str, Any], told: str
) -> None:
    (fault,) = faults(**settings)
    assert told in fault
    assert fault.startswith("model.")
    assert ";" in fault
    assert "\n" not in fault


def test_flash_attention_is_no_fault_where_auto_finds_no_gpu() -> None:
    model = ModelSettings(path="some/model", attention="flash")
    assert list(model_faults(model, "plain", overlap=False)) == []


def test_every_conflict_is_told_at_once() -> None:
    fp8 = {"recipe": "tensorwise", "amax_history": 16, "params": True}
    assert len(faults(spec="plain", dtype="float32", fp8=fp8)) == 3


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_examples_have_none_on_gpus(path: Path) -> None:
    settings = load_settings(path)
    spec = resolve_spec(settings.model.spec, on_gpu=True)
    assert list(model_faults(settings.model, spec, overlap=settings.parallel.overlap)) == []


def test_the_demo_has_none_without_gpus() -> None:
    settings = load_settings(ROOT / "examples" / "toy.yaml")
    spec = resolve_spec(settings.model.spec, on_gpu=False)
    assert list(model_faults(settings.model, spec, overlap=settings.parallel.overlap)) == []
