"""What the shipped runs of 4B to 32B ask of Megatron on H100s: as it is kept, and as others publish
these models. No GPU is needed for any of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_vr.algorithm.resolved_run import Target, resolve_run, target_elsewhere
from megatron_vr.config.load import load_settings
from megatron_vr.models.parts import Parts
from megatron_vr.traces.fingerprint import differences
from tests.algorithm.golden.resolved import EXAMPLES, H100, ROOT, kept, resolved

every_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)

# Shapes as others state them for Megatron or torch: layers, hidden size, MLP, heads, key/value
# heads, vocabulary, epsilon, one matrix for embedding and output, norms of queries and keys, QKV
# bias. Of Qwen3 and of 7B (whose shape is Qwen2's) NVIDIA NeMo, nemo/collections/llm/gpt/model/
# qwen3.py and qwen2.py; of 32B-Instruct, whose epsilon is not its base's, torchtune's
# qwen2_5_32b_instruct. All have heads of 128 numbers and a rotary base of 10⁶.
PUBLISHED = {
    "qwen3-4b": (36, 2560, 9728, 32, 8, 151936, 1e-6, True, True, False),
    "qwen3-8b": (36, 4096, 12288, 32, 8, 151936, 1e-6, False, True, False),
    "qwen2.5-7b": (28, 3584, 18944, 28, 4, 152064, 1e-6, False, False, True),
    "qwen2.5-32b": (64, 5120, 27648, 40, 8, 152064, 1e-6, False, False, True),
    "qwen2.5-32b-fp8": (64, 5120, 27648, 40, 8, 152064, 1e-6, False, False, True),
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def built(example: Path) -> Iterator[dict[str, Any]]:
    """Each training and the scoring, as kept."""
    content = kept(example)
    yield from content["trainings"]
    yield content["scoring"]


@every_example
def test_an_example_builds_what_is_kept(example: Path) -> None:
    changed = differences(kept(example), resolved(example))
    told = "\n".join(changed)
    assert not changed, f"{told}\nto keep it: python -m tests.algorithm.golden.resolved"


@every_example
def test_an_example_has_no_fault_on_h100s(example: Path) -> None:
    assert kept(example)["faults"] == []


@every_example
def test_the_shape_is_the_published_one(example: Path) -> None:
    layers, hidden, units, heads, groups, vocabulary, epsilon, tied, norms, bias = PUBLISHED[
        example.stem
    ]
    for one in built(example):
        fields, gpt = one["transformer"], one["gpt"]
        assert (fields["num_layers"], fields["hidden_size"]) == (layers, hidden)
        assert fields["ffn_hidden_size"] == units
        assert (fields["num_attention_heads"], fields["num_query_groups"]) == (heads, groups)
        assert fields["kv_channels"] == 128
        assert fields["layernorm_epsilon"] == epsilon
        assert (fields["qk_layernorm"], fields["add_qkv_bias"]) == (norms, bias)
        assert gpt["true_vocab_size"] == vocabulary
        assert gpt["share_embeddings_and_output_weights"] is tied
        assert gpt["rotary_base"] == 1e6


@every_example
def test_qwens_have_rms_norms_swiglu_and_no_other_bias_or_dropout(example: Path) -> None:
    expected = {
        "normalization": "RMSNorm",
        "activation_func": "silu",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    for one in built(example):
        assert {key: one["transformer"][key] for key in expected} == expected


@every_example
def test_scoring_has_no_fp8_and_no_part_of_an_optimizer(example: Path) -> None:
    scoring = kept(example)["scoring"]
    assert scoring["fp8"] is None
    assert not [key for key in scoring["transformer"] if "fp8" in key or "recompute" in key]
    assert scoring["data_parallel"] is scoring["optimizer"] is None
    assert scoring["recompute"] == "none"


@every_example
def test_log_probs_are_reduced_in_float32_and_weights_are_bfloat16(example: Path) -> None:
    for one in built(example):
        assert one["log_prob_reduction"] == "float32"
        assert (one["dtype"], one["transformer"]["params_dtype"]) == ("bfloat16", "bfloat16")
        assert one["transformer"]["bf16"] is True
        assert "fp16" not in one["transformer"]


@every_example
def test_the_vocabulary_is_split_evenly_with_less_than_a_row_for_each_rank_added(
    example: Path,
) -> None:
    tensor = load_settings(example, []).parallel.tensor
    for one in built(example):
        added = one["gpt"]["vocab_size"] - one["gpt"]["true_vocab_size"]
        assert one["gpt"]["vocab_size"] % tensor == 0
        assert 0 <= added < tensor


@every_example
def test_all_run_on_transformer_engine_with_cudnns_attention(example: Path) -> None:
    for one in built(example):
        assert (one["layers"], one["why"], one["attention"]) == ("te", "auto: GPUs", "cuDNN")
        assert one["transformer"]["attention_backend"] == "fused"
        assert one["transformer"]["apply_rope_fusion"] is True


@every_example
def test_losses_are_sums_and_gradients_are_summed_in_float32(example: Path) -> None:
    for one in kept(example)["trainings"]:
        assert one["transformer"]["calculate_per_token_loss"] is True
        assert one["data_parallel"]["grad_reduce_in_fp32"] is True
        assert one["fused_weight_gradients"] is True
        # Megatron's own layers want apex for it.
        assert one["transformer"]["gradient_accumulation_fusion"] is False


def test_only_the_example_of_that_name_trains_in_fp8() -> None:
    in_fp8 = {path.stem for path in EXAMPLES if any(one["fp8"] for one in built(path))}
    assert in_fp8 == {"qwen2.5-32b-fp8"}


def test_packs_are_padded_for_the_ranks_that_share_them_and_for_fp8() -> None:
    """Every sequence into two chunks for each context rank; of a pack each tensor rank takes an
    equal share, in FP8 of whole blocks of 128."""
    found = {path.stem: kept(path)["trainings"][0] for path in EXAMPLES}
    multiples = {
        name: (one["sequence_multiple"], one["pack_multiple"]) for name, one in found.items()
    }
    assert multiples == {
        "qwen3-4b": (4, 8),
        "qwen3-8b": (4, 16),
        "qwen2.5-7b": (8, 16),
        "qwen2.5-32b": (1, 8),
        "qwen2.5-32b-fp8": (4, 2 * 8 * 128),
    }
    scoring = kept(ROOT / "examples/qwen2.5-32b-fp8.yaml")["scoring"]
    assert (scoring["sequence_multiple"], scoring["pack_multiple"]) == (4, 32)


def test_trainings_that_differ_stand_apart() -> None:
    example = ROOT / "examples/qwen3-4b.yaml"
    changed = resolved(example, "posterior.train.optimizer.learning_rate=3.0e-6")
    assert [one["stages"] for one in changed["trainings"]] == [["sft", "train"], ["posterior"]]
    assert differences(*changed["trainings"])[-1] == "stages[1]: train → absent"
    rates = [one["optimizer"]["lr"] for one in changed["trainings"]]
    assert rates == [1e-5, 3e-6]


def test_a_fault_of_settings_shape_or_parts_is_a_line() -> None:
    settings = load_settings(
        ROOT / "examples/qwen3-4b.yaml",
        [
            "model.fp8={recipe: blockwise, first_layers_bf16: 30, last_layers_bf16: 6}",
            "model.dtype=float32",
            "parallel.tensor=16",
        ],
    )
    old = replace(H100, parts=replace(H100.parts, cuda="12.4"))
    faults = resolve_run(settings, old).faults
    for told in ("dtype", "first_layers_bf16 + last_layers_bf16 is 36", "CUDA", "tensor=16"):
        assert [line for line in faults if told in line], (told, faults)
    assert all("\n" not in line for line in faults)


def test_what_is_wrong_with_every_row_is_told_once() -> None:
    settings = load_settings(
        ROOT / "examples/qwen3-4b.yaml",
        ["comparisons={gml: {weights.estimator: gml}}", "model.fp8=mxfp8"],
    )
    faults = resolve_run(settings, H100).faults
    assert len([line for line in faults if "mxfp8" in line]) == 1


def test_without_a_gpu_the_layers_are_torchs() -> None:
    settings = load_settings(ROOT / "examples/qwen3-4b.yaml", [])
    target = target_elsewhere("a CPU", None, H100.parts)
    run = resolve_run(settings, target)
    assert (run.scoring.layers, run.scoring.why) == ("plain", "auto: no GPU")
    assert run.scoring.attention == "torch"


def test_parts_that_are_missing_here_are_assumed_elsewhere_and_that_is_said() -> None:
    laptop = Parts(megatron="0.16.1", torch="2.13.0+cpu")
    target = target_elsewhere("an H100", (9, 0), laptop)
    assert (target.parts.transformer_engine, target.parts.cuda) == ("2.20.2", "13.0")
    assert target.parts.megatron == "0.16.1"
    assert target.notes == ("Transformer Engine 2.20.2 and CUDA 13.0 assumed: not installed here",)
    assert target_elsewhere("an H100", (9, 0), H100.parts) == Target("an H100", H100.parts)


@every_example
def test_megatron_takes_every_field_and_changes_none(example: Path) -> None:
    run = resolve_run(load_settings(example, []), H100)
    for one in (*run.trainings.values(), run.scoring):
        fields = dict(one.transformer)
        if find_spec("transformer_engine") is None:
            # The one field that Megatron refuses without it.
            fields["apply_rope_fusion"] = False
        config = TransformerConfig(**fields)
        assert {name: getattr(config, name) for name in fields} == fields
    for one in run.trainings.values():
        assert one.data_parallel is not None and one.optimizer is not None
        DistributedDataParallelConfig(**one.data_parallel)
        OptimizerConfig(**one.optimizer)
