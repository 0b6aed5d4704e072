"""Model operations against torch's own count of a Hugging Face model, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from megatron_vr.models.architecture import Architecture, parse_architecture
from megatron_vr.training.flops import ModelFlops, peak_tflops
from tests.models.reference import VOCABULARY, tiny_model

QWEN3_0_6B = Architecture(
    family="qwen3",
    hidden_size=1024,
    ffn_hidden_size=3072,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_positions=40960,
    rope_theta=1e6,
    norm_eps=1e-6,
    tied=True,
)
FAMILIES = pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", True), ("qwen2", False), ("llama", False), ("qwen3_moe", False)],
)


def eager(family: str, tied: bool) -> tuple[Any, ModelFlops]:
    """A model that writes its attention, and each expert, out as matrix products that are counted,
    and its operations."""
    model = tiny_model(family, tied)
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    return model, ModelFlops.of(parse_architecture(model.config.to_dict(), "the test"))


def counted(run: Callable[[], None]) -> tuple[int, int]:
    """torch's count of `run`: products with weights, and products of queries, keys and values."""
    with FlopCounterMode(display=False) as counter:
        run()
    found = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert set(found) <= {"aten.mm", "aten.addmm", "aten.bmm"}
    # Queries, keys and values with a bias (Qwen2) are counted apart.
    return found["aten.mm"] + found.get("aten.addmm", 0), found["aten.bmm"]


def ids(n: int) -> torch.Tensor:
    return torch.arange(n)[None] % VOCABULARY


@FAMILIES
def test_projections_and_head_are_those_torch_counts(family: str, tied: bool) -> None:
    model, flops = eager(family, tied)
    n, m = 21, 8
    with torch.no_grad():
        weights, attention = counted(lambda: model(ids(n), logits_to_keep=m))
    assert weights == n * flops.projections + m * flops.head
    # This model computes all n² pairs and then masks those that a causal model does not need.
    assert attention == n**2 * flops.attention


@FAMILIES
def test_a_model_that_reads_token_by_token_does_exactly_the_causal_work(
    family: str, tied: bool
) -> None:
    model, flops = eager(family, tied)
    n = 7

    def read() -> None:
        cache = None
        for t in range(n):
            cache = model(ids(n)[:, t : t + 1], past_key_values=cache, use_cache=True)
            cache = cache.past_key_values

    with torch.no_grad():
        weights, attention = counted(read)
    assert attention == n * (n + 1) // 2 * flops.attention
    assert weights + attention == flops.forward(n, n)


@FAMILIES
def test_a_training_step_is_three_forward_passes(family: str, tied: bool) -> None:
    model, flops = eager(family, tied)
    n, m = 13, 5
    weights, attention = counted(lambda: model(ids(n), logits_to_keep=m).logits.sum().backward())
    assert weights == 3 * (n * flops.projections + m * flops.head)
    assert attention == 3 * n**2 * flops.attention
    above = n * (n - 1) // 2  # pairs behind the mask
    assert flops.training(n, m) == weights + attention - 3 * above * flops.attention


def test_qwen3_0_6b_by_hand() -> None:
    flops = ModelFlops.of(QWEN3_0_6B)
    # A layer's weights: q and o 1024·2048 each, k and v 1024·1024 each, three of 1024·3072.
    assert flops.projections == 2 * 28 * (2 * 2_097_152 + 2 * 1_048_576 + 3 * 3_145_728)
    assert flops.projections == 880_803_840
    assert flops.head == 2 * 1024 * 151_936 == 311_164_928
    assert flops.attention == 4 * 16 * 128 * 28 == 229_376
    # 4096 tokens: 4096 · 4097 / 2 = 8,390,656 pairs; 1000 of them are targets.
    by_hand = 3_607_772_528_640 + 1_924_615_110_656 + 311_164_928_000
    assert flops.forward(4096, 1000) == by_hand
    assert flops.training(4096, 1000) == 3 * by_hand


def test_arrays_of_lengths_give_each_sequence_its_own_operations() -> None:
    flops = ModelFlops.of(QWEN3_0_6B)
    tokens, targets = np.array([[1, 17], [4096, 30_000]]), np.array([[0, 16], [1000, 9]])
    found = flops.training(tokens, targets)
    assert found.dtype == np.float64
    assert found.shape == (2, 2)
    for at in np.ndindex(2, 2):
        assert found[at] == flops.training(int(tokens[at]), int(targets[at]))
    assert flops.forward([], []).sum() == 0.0
    assert flops.forward(2, 0) > 2 * flops.forward(1, 0), "attention grows with the square"


def test_known_devices_have_their_dense_peak() -> None:
    assert peak_tflops("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989.4
    assert peak_tflops("NVIDIA H100 PCIe", torch.bfloat16) == 756.0
    assert peak_tflops("NVIDIA H200", torch.bfloat16) == 989.4
    assert peak_tflops("NVIDIA H800", torch.bfloat16) == 989.4
    assert peak_tflops("NVIDIA B200", torch.bfloat16) == 2250.0
    for name in ("NVIDIA A100-SXM4-80GB", "A100-SXM4-40GB", "NVIDIA A100 80GB PCIe"):
        assert peak_tflops(name, torch.bfloat16) == 312.0
        assert peak_tflops(name, torch.float32) == 19.5, "without TF32"


@pytest.mark.parametrize(
    "name",
    ["cpu", "", "NVIDIA GH200 480GB", "NVIDIA H20", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "A100X"],
)
def test_no_peak_is_guessed(name: str) -> None:
    assert peak_tflops(name, torch.bfloat16) is None


def test_a_dtype_without_a_listed_peak_has_none() -> None:
    assert peak_tflops("NVIDIA H200", torch.float16) is None
