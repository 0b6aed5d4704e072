"""The goals, and the pure decisions around them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest

from megatron_vr.models.known import known_architecture
from tools.bench.on_gpu.goals import FP8, goals
from tools.bench.on_gpu.kernels import kernel_times, kind_of, shares
from tools.bench.on_gpu.place import Place
from tools.bench.on_gpu.running import ROOT
from tools.bench.on_gpu.shapes import MODELS, layers_that_fit, needed, rival_bytes
from tools.bench.on_gpu.shown import markdown
from tools.bench.on_gpu.steps import Profile, whole_seconds

GIB = 2**30


def content(*, rehearsal: Any = False, **rows: Any) -> dict[str, Any]:
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
        "rival__8192__cuDNN,_bfloat16_AdamW": {"failed": "RuntimeError: No available kernel"},
        "vllm__load__vLLM": {"seconds": 31.0, "said": "8 tokens"},
    }
    found = {goal.name: goal for goal in goals(content(**rows))}
    share = found["8b bf16, 8192: share of the bf16 rate"]
    assert (share.value, share.goal, share.met) == (0.55, "≥ 0.5", True)
    faster = found["8b tensorwise: tokens/s over bf16, measured"]
    assert (faster.value, faster.goal, faster.met) == (1.25, "≥ 1.3", False)
    equal = found["tokens/s over Transformers + Liger, 8192, flash, float32 main weights"]
    assert (equal.value, equal.goal, equal.met) == (1.6, "≥ 1.5", True)
    # Their cheaper optimizer is told, and no goal.
    assert found["tokens/s over Transformers + Liger, 8192, flash, bfloat16 AdamW"].met is None
    assert found["FP8 release, seconds until vLLM wrote tokens"].value == 31.0
    told = markdown(content(**rows))
    assert "| bf16 step of Qwen3-8B's shape over that rate | ≥ 0.5 | 0.55 (met) [1000 tok" in told
    assert "measured | ≥ 1.3 | tensorwise 1.25 (not met) [1250 and 1000] | today, a card" in told
    assert "- rival, 8192, cuDNN, bfloat16 AdamW: failed: RuntimeError: No available" in told


def curve(losses: list[Any], of_steps: int = 300) -> dict[str, Any]:
    """A row of the part `curves`."""
    return {"steps": len(losses), "of_steps": of_steps, "losses": losses, "skipped": 3}


def test_curves_are_judged_as_far_as_both_go_and_one_that_was_lost_is_no_success() -> None:
    rows = {
        "curves__bf16__curve": curve([2.0] * 150),
        "curves__tensorwise__curve": curve([2.0] * 135 + [2.02] * 165),
        "curves__blockwise__curve": curve([*[2.0] * 50, "nan", *[2.0] * 249]),
        "curves__delayed__curve": curve([2.0] * 50),
    }
    found = {goal.name: goal for goal in goals(content(**rows))}
    gap = found["tensorwise: gap of the loss to bf16's"]
    assert (gap.value, gap.met) == (pytest.approx(0.01), False)
    assert gap.detail.startswith("after 150 steps: 2.02 and 2.0 over the last 15; 3 steps skipped")
    lost = found["blockwise: gap of the loss to bf16's"]
    assert math.isnan(lost.value) and lost.met is False
    assert lost.detail.endswith("not finite at step 51")
    # So few steps say nothing.
    assert "delayed: gap of the loss to bf16's" not in found


def test_a_smaller_step_is_compared_with_bf16s_of_its_depth() -> None:
    rows = {
        "step__8b_bf16__8192": step(6, 1000.0, 440.0),
        "step__8b_bf16__8192,_smaller_1": step(4, 1600.0, 440.0),
        "step__8b_tensorwise__8192": step(6, 1500.0, 500.0),
        "step__8b_blockwise__8192": step(4, 2000.0, 500.0),
    }
    found = {goal.name: goal.value for goal in goals(content(**rows))}
    assert found["8b tensorwise: tokens/s over bf16, measured"] == 1.5
    assert found["8b blockwise: tokens/s over bf16, measured"] == 1.25


def test_the_page_has_the_table_that_is_printed_and_each_goal_has_its_own_name() -> None:
    page = (ROOT / "docs" / "gpu-results.md").read_text("utf-8").splitlines()
    printed = [line for line in markdown(everything()).splitlines() if line.startswith("|")]
    columns = {tuple(line.split("|")[1:3]) for line in page}
    assert {tuple(line.split("|")[1:3]) for line in printed} <= columns
    # With every row measured, no line is blank.
    assert not [line for line in printed if line.endswith("| |")]
    names = [goal.name for goal in goals(everything())]
    assert len(names) == len(set(names))


def everything() -> dict[str, Any]:
    """A file in which nothing is missing."""
    rows: dict[str, dict[str, Any]] = {"rate__memory_copy__copy": {"tb_per_s": 3.0}}
    for case in ("bf16_products", "fp8_products"):
        for name in ("square", "layer"):
            rows[f"rate__{case}__{name}"] = {"tflops": 800.0, "shape": "8192³"}
    head = ("ours_s", "rival_s", "time_ratio", "memory_ratio", "ours_mib", "rival_mib")
    sizes = dict.fromkeys((*head, "rival_without_its_weight_gradient_mib"), 1.0) | {"shape": "it"}
    for case in ("Liger_4096", "Liger_2560", "dense_4096", "dense_2560", "Megatron_4096"):
        rows[f"head__{case}__head"] = sizes
    for shape in ("8b", "4b"):
        for recipe in ("bf16", *FP8):
            rows[f"step__{shape}_{recipe}__8192"] = step(6, 1000.0, 440.0)
            computed = {"computed_for_layers": 36, "from_layers": 6, "tokens_per_s": 1.0}
            rows[f"step__{shape}_{recipe}__all_layers"] = computed | {"tflops": 1.0}
    for name in ("ours", "flash,_bfloat16_AdamW", "flash,_float32_main_weights"):
        rows[f"rival__8192__{name}"] = {"layers": 6, "seconds": 1.0}
    padded = "flash_over_padding,_bfloat16_AdamW"
    for name in ("ours", "packed,_bfloat16_AdamW", "packed,_float32_main_weights", padded):
        rows[f"rival__traces__{name}"] = {"layers": 6, "seconds": 1.0}
    for case in ("bf16", *FP8, "bf16_in_other_packs"):
        rows[f"curves__{case}__curve"] = curve([2.0] * 300)
    for name in ("written", "convert_to-megatron", "loaded_into_the_layers"):
        rows[f"convert__4b__{name}"] = {"gb_per_s": 1.0, "seconds": 8.0, "gb": 8.0}
    errors = ("ours_mean", "ours_largest", "transformers_bf16_mean", "transformers_bf16_largest")
    rows["convert__4b__log-probs"] = dict.fromkeys(errors, 0.1)
    rows["vllm__load__vLLM"] = {"seconds": 31.0}
    return content(**rows)


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
        "void multi_tensor_apply_kernel<L2NormFunctor<float>>": "optimizer",
        "void transformer_engine::multi_tensor_l2norm::cleanup(float*)": "optimizer",
        "void multi_tensor_apply_kernel<TensorListMetadata<2>, ScaleFunctor<float>>": "optimizer",
        "void at::native::unrolled_elementwise_kernel<direct_copy_kernel_cuda, LoadWithCast<1>>": (
            "copies and zeros"
        ),
        "void at::native::unrolled_elementwise_kernel<AddFunctor, StoreWithCast<1>>": (
            "everything else"
        ),
        "triton_poi_fused__to_copy_add_cat_mul_rsub_sigmoid_0": "SwiGLU",
        "void transformer_engine::cast_transpose_kernel<bf16, e4m3>": "FP8 casts and transposes",
        "_row_sums": "head's softmax",
        "_overwrite": "head's softmax",
        "Memcpy DtoD (Device -> Device)": "copies and zeros",
        "void at::native::index_elementwise_kernel": "everything else",
    }
    assert {name: kind_of(name) for name in names} == names
    told = shares([("nvjet_one", 3.0), ("xmma_two", 1.0), ("Memset (Device)", 0.5)])
    assert told["kinds"] == {"products": 4.0, "copies and zeros": 0.5}
    assert told["device_seconds"] == 4.5


@dataclass(frozen=True)
class Kind:
    """As torch calls a device."""

    name: str


@dataclass(frozen=True)
class Event:
    """As the profiler tells of one."""

    key: str
    device_type: Kind
    is_user_annotation: bool = False
    self_device_time_total: float = 2e6


def test_only_kernels_count_not_what_launched_them_nor_stretches_with_a_name() -> None:
    events = [
        Event("nvjet_one", Kind("CUDA")),
        Event("aten::mm", Kind("CPU")),
        Event("Optimizer.step#Adam.step", Kind("CUDA"), is_user_annotation=True),
        Event("nccl:all_reduce", Kind("CUDA"), is_user_annotation=True),
    ]
    assert kernel_times(events, "cuda") == [("nvjet_one", 2.0)]


def test_a_rehearsal_is_on_the_cpu_and_small(tmp_path: Any) -> None:
    real, trial = Place(False, 0.0, tmp_path), Place(True, 0.0, tmp_path)
    assert (real.device, real.spec, real.sized(3, 1)) == ("cuda", "te", 3)
    assert (trial.device, trial.spec, trial.sized(3, 1)) == ("cpu", "plain", 1)
