"""The goals, and the pure decisions around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megatron_vr.models.known import known_architecture
from tools.bench.on_gpu.goals import goals
from tools.bench.on_gpu.kernels import kind_of, shares
from tools.bench.on_gpu.place import Place
from tools.bench.on_gpu.shapes import MODELS, layers_that_fit, needed, rival_bytes
from tools.bench.on_gpu.shown import markdown
from tools.bench.on_gpu.steps import Profile, whole_seconds

GIB = 2**30


def content(rehearsal: bool = False, **rows: dict[str, Any]) -> dict[str, Any]:
    """A file with the rows `part__case__row`, spaces as one underscore."""
    parts: dict[str, Any] = {}
    for place, values in rows.items():
        part, case, row = (name.replace("_", " ") for name in place.split("__"))
        cases = parts.setdefault(part, {"cases": {}})["cases"]
        cases.setdefault(case, {"status": "done", "why": "", "rows": {}})["rows"][row] = values
    about = {"rehearsal": rehearsal, "date": "today", "command": "it", "versions": {"torch": "2"}}
    return {**about, "parts": parts}


def step(layers: int, tokens_per_s: float, tflops: float) -> dict[str, Any]:
    """A row of the part `step`."""
    rates = {"tokens_per_s": tokens_per_s, "tflops": tflops}
    return {"layers": layers, "layers_of_shape": 36, **rates}


def test_each_goal_is_told_with_its_ratio_and_whether_it_is_met() -> None:
    rows = {
        "rate__bf16_products__square": {"tflops": 800.0, "shape": "8192³"},
        "step__8b_bf16__8192": step(6, 1000.0, 440.0),
        "step__8b_tensorwise__8192": step(6, 1250.0, 500.0),
        "rival__8192__ours": {"layers": 6, "seconds": 1.0},
        "rival__8192__flash,_bfloat16_AdamW": {"layers": 6, "seconds": 1.4},
        "rival__8192__flash,_float32_main_weights": {"layers": 6, "seconds": 1.6},
        "curves__bf16__curve": {"steps": 20, "of_steps": 20, "losses": [2.0] * 20},
        "curves__delayed__curve": {"steps": 20, "of_steps": 20, "losses": [2.0] * 10 + [2.02] * 10},
        "curves__blockwise__curve": {"steps": 20, "of_steps": 20, "losses": ["nan"] * 20},
    }
    found = {goal.name: goal for goal in goals(content(**rows))}
    share = found["8b bf16, 8192: share of the bf16 rate"]
    assert (share.value, share.goal, share.met) == (0.55, "≥ 0.5", True)
    faster = found["8b tensorwise: tokens/s over bf16"]
    assert (faster.value, faster.goal, faster.met) == (1.25, "≥ 1.3", False)
    equal = found["tokens/s over Transformers + Liger, 8192, flash, float32 main weights"]
    assert (equal.value, equal.goal, equal.met) == (1.6, "≥ 1.5", True)
    # Their cheaper optimizer is told, and no goal.
    assert found["tokens/s over Transformers + Liger, 8192, flash, bfloat16 AdamW"].met is None
    gap = found["delayed: gap of the loss to bf16's after 20 steps"]
    assert (gap.value, gap.met) == (pytest.approx(0.01), False)
    # A training that was lost does not pass.
    assert found["blockwise: gap of the loss to bf16's after 20 steps"].met is False
    assert "| step | 8b bf16, 8192: share of the bf16 rate | 0.55 " in markdown(content(**rows))


def test_steps_of_unequal_depth_are_not_compared() -> None:
    rows = {
        "step__8b_bf16__8192": step(6, 1000.0, 440.0),
        "step__8b_tensorwise__8192": step(4, 2000.0, 500.0),
        "rival__8192__ours": {"layers": 6, "seconds": 1.0},
        "rival__8192__flash,_float32_main_weights": {"layers": 4, "seconds": 1.6},
    }
    assert not [goal for goal in goals(content(**rows)) if " over " in goal.name]


def test_a_rehearsal_has_no_goals() -> None:
    rows = {"rate__memory_copy__copy": {"tb_per_s": 3.0}}
    assert len(goals(content(**rows))) == 1
    assert goals(content(rehearsal=True, **rows)) == []
    assert "|" not in markdown(content(rehearsal=True, **rows))


@pytest.mark.parametrize(("name", "small", "large"), [("8b", 5, 12), ("4b", 11, 21)])
def test_as_many_layers_are_taken_as_the_fullest_of_the_rivals_leaves_room_for(
    name: str, small: int, large: int
) -> None:
    shape = known_architecture(MODELS[name])
    for gib, about in ((79.1, small), (139.8, large)):
        memory = int(gib * GIB)
        layers = layers_that_fit(shape, 32768, memory)
        assert abs(layers - about) <= 1
        assert needed(replace(shape, layers=layers), 32768) <= 0.9 * memory
        assert needed(replace(shape, layers=layers + 1), 32768) > 0.9 * memory
        assert layers_that_fit(shape, 32768, memory, smaller=1) == int(0.75 * layers)
    with pytest.raises(ValueError, match="not one layer of hidden size"):
        layers_that_fit(shape, 32768, 16 * GIB)


def test_the_rivals_weights_and_moments_are_counted() -> None:
    shape = replace(known_architecture(MODELS["8b"]), layers=4)
    # A token more costs what a token keeps, and no token at all costs 20 bytes a parameter.
    matrices = 4 * (2 * 4096 * (4096 + 1024) + 3 * 4096 * 12288) + 2 * 151936 * 4096
    assert rival_bytes(shape, 0) - 2**30 == 20 * matrices


def test_a_step_of_all_layers_is_computed_from_the_times_of_fewer() -> None:
    whole = known_architecture(MODELS["8b"])
    found = whole_seconds(Profile(0.01, 1.2, 0.3, 0.1), replace(whole, layers=6), whole)
    layer = 2 * 4096 * (4096 + 1024) + 3 * 4096 * 12288
    head = 2 * 151936 * 4096
    grown = (36 * layer + head) / (6 * layer + head)
    assert found == pytest.approx(0.01 + 0.3 + 6 * 1.2 + 0.1 * grown)


def test_kernels_are_told_apart_by_their_names() -> None:
    names = {
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "nvjet_qqtst_128x256_128x4_2x1_v_bz_coopA_TNT": "products",
        "void transformer_engine::rmsnorm_fwd_tuned_kernel<float>": "norms",
        "void transformer_engine::multi_tensor_adam": "optimizer",
        "Memcpy DtoD (Device -> Device)": "copies and zeros",
        "void at::native::index_elementwise_kernel": "everything else",
    }
    assert {name: kind_of(name) for name in names} == names
    told = shares([("nvjet_one", 3.0), ("xmma_two", 1.0), ("Memset (Device)", 0.5)])
    assert told["kinds"] == {"products": 4.0, "copies and zeros": 0.5}
    assert told["device_seconds"] == 4.5


def test_a_rehearsal_is_on_the_cpu_and_small(tmp_path: Any) -> None:
    real, trial = Place(False, 0.0, tmp_path), Place(True, 0.0, tmp_path)
    assert (real.device, real.spec, real.sized(3, 1)) == ("cuda", "te", 3)
    assert (trial.device, trial.spec, trial.sized(3, 1)) == ("cpu", "plain", 1)
