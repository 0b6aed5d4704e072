"""A Megatron model built from a Hugging Face folder computes what Transformers computes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.convert.load import load_hf
from megatron_vr.errors import SettingsError
from megatron_vr.models.architecture import Architecture, read_architecture
from megatron_vr.models.gpt import build_model, transformer_config
from megatron_vr.models.log_prob import Targets
from megatron_vr.models.spec import spec_here
from megatron_vr.parallel.layout import Layout
from tests.models.reference import VOCABULARY, label_log_probs, save_gradients, tiny_model

pytestmark = pytest.mark.usefixtures("megatron")

# One long sequence and many short ones: attended in more than one batch.
LENGTHS = [60, 3, 1, 5, 4, 17, 2]

# Scaled frequencies as those of Llama 3.1.
LLAMA3: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 16384,
}


def build(architecture: Architecture, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "spec": "plain",
        "dtype": "float32",
        "recompute": "none",
        "log_prob_chunk": 7,
    }
    (model,) = build_model(architecture, Layout(), **options | changes)
    return model


def loaded(reference: Any, folder: Path, **changes: Any) -> Any:
    reference.save_pretrained(folder)
    architecture = read_architecture(folder)
    model = build(architecture, **changes)
    load_hf([model], folder, architecture)
    return model


def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def packed_log_probs(model: Any, ids: list[Tensor]) -> Tensor:
    """log p of every token but the first of each sequence, through one pack."""
    from megatron.core.packed_seq_params import PackedSeqParams

    lengths = torch.tensor([len(sequence) for sequence in ids])
    bounds = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).int()
    tokens = torch.cat(ids)[None]
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[0, bounds[1:] - 1] = False
    pack = PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=int(lengths.max()),
        max_seqlen_kv=int(lengths.max()),
    )
    positions = torch.cat([torch.arange(len(sequence)) for sequence in ids])[None]
    labels = tokens.roll(-1, 1)
    log_probs: Tensor = model(
        tokens, positions, None, labels=Targets(labels, mask), packed_seq_params=pack
    )
    return log_probs


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("llama", LLAMA3),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("qwen3_moe", {"norm_topk_prob": False}),
    ],
    ids=["llama", "llama3", "qwen2", "qwen3", "qwen3_moe", "qwen3_moe-not-normalised"],
)
def test_logits_equal_transformers(
    family: str, changes: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    reference = tiny_model(family, tied, **changes)
    model = loaded(reference, tmp_path)
    ids = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(20).expand(3, -1)
    with torch.no_grad():
        logits, expected = model(ids, positions, None), reference(ids).logits
    assert logits.shape == (3, 20, VOCABULARY)
    assert expected.std() > 0.1, "the reference is too flat to tell models apart"
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaled_frequencies_of_llama_3_are_those_of_transformers(
    factor: float, tmp_path: Path
) -> None:
    rope = LLAMA3["rope_parameters"] | {"factor": factor}
    changes = LLAMA3 | {"rope_parameters": rope, "head_dim": 128, "num_hidden_layers": 1}
    reference = tiny_model("llama", True, **changes)
    reference.config.save_pretrained(tmp_path)
    found = build(read_architecture(tmp_path)).rotary_pos_emb.rotary.inv_freq
    expected = reference.model.rotary_emb.inv_freq
    unscaled = 1 / rope["rope_theta"] ** (torch.arange(0, 128, 2) / 128)
    assert (unscaled / expected).max() > 0.99 * factor, "the reference does not scale"
    assert (unscaled / expected).min() < 1.01, "the reference scales all alike"
    assert found.equal(expected)


@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", True), ("qwen2", False), ("llama", True), ("qwen3_moe", False)],
)
def test_a_pack_gives_each_sequences_own_log_probs_and_gradients(
    family: str, tied: bool, tmp_path: Path
) -> None:
    reference = tiny_model(family, tied)
    model = loaded(reference, tmp_path)
    found = packed_log_probs(model, sequences())
    expected = torch.cat([label_log_probs(reference, ids) for ids in sequences() if len(ids) > 1])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)

    coefficients = torch.linspace(-1, 1, len(found))
    (coefficients @ found).backward()
    (coefficients @ expected).backward()
    save_gradients(reference, tmp_path / "gradients")
    architecture = read_architecture(tmp_path)
    gradients = build(architecture)
    load_hf([gradients], tmp_path / "gradients", architecture)
    wanted = dict(gradients.named_parameters())
    for name, parameter in model.named_parameters():
        expected_gradient = wanted[name].detach()
        scale = float(expected_gradient.abs().max())
        assert scale > 0, f"{name} has no gradient: it is not tested"
        error = float((parameter.grad - expected_gradient).abs().max()) / scale
        assert error < 1e-5, f"the gradient of {name} is off by {error:.1e} of its largest"


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_bfloat16_differs_from_float32_by_rounding_only(family: str, tmp_path: Path) -> None:
    reference = tiny_model(family, False)
    model = loaded(reference, tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        found = packed_log_probs(model, sequences())
        exact = torch.cat([label_log_probs(reference, ids) for ids in sequences() if len(ids) > 1])
        low = reference.bfloat16()
        theirs = torch.cat([label_log_probs(low, ids) for ids in sequences() if len(ids) > 1])
    assert found.dtype == torch.float32
    # Measured against Transformers' own loss of precision at bfloat16.
    assert (found - exact).std() < 1.5 * (theirs - exact).std()


def test_a_pack_must_end_at_its_last_token(tmp_path: Path) -> None:
    from megatron.core.packed_seq_params import PackedSeqParams

    tiny_model("qwen3", False).config.save_pretrained(tmp_path)
    attention = build(read_architecture(tmp_path)).decoder.layers[0].self_attention.core_attention
    bounds = torch.tensor([0, 4])
    pack = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds)
    tensors = [torch.randn(6, 2, 8) for _ in "qkv"]
    with pytest.raises(ValueError, match="end at token 4, but it has 6"):
        attention(*tensors, None, packed_seq_params=pack)


def test_labels_need_a_bool_loss_mask(tmp_path: Path) -> None:
    tiny_model("qwen3", False).config.save_pretrained(tmp_path)
    model = build(read_architecture(tmp_path))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"bool, not torch\.float32"):
        model(ids, ids, None, labels=Targets(ids, torch.ones(1, 4)))


def test_losses_are_sums_whenever_gradients_are_reduced(tmp_path: Path) -> None:
    tiny_model("qwen3", False).config.save_pretrained(tmp_path)
    config = transformer_config(
        read_architecture(tmp_path), Layout(), spec="plain", dtype="float32", recompute="none"
    )
    assert config.calculate_per_token_loss


@pytest.mark.skipif(
    importlib.util.find_spec("transformer_engine") is not None, reason="it is installed"
)
def test_missing_transformer_engine_names_the_extra() -> None:
    with pytest.raises(SettingsError, match=r"megatron-vr\[gpu\]"):
        spec_here("te")


def test_an_unknown_spec_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"model\.spec='fast'"):
        spec_here("fast")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("recipe", "number_format"),
    [("tensorwise", "hybrid"), ("delayed", "hybrid"), ("blockwise", "e4m3")],
)
def test_fp8_is_asked_of_megatron_with_the_format_of_its_recipe(
    recipe: Any, number_format: str, tmp_path: Path
) -> None:
    tiny_model("qwen3", False).config.save_pretrained(tmp_path)
    model = read_architecture(tmp_path)
    # The fields of the te spec cannot be made where Transformer Engine is missing.
    options: dict[str, Any] = {"spec": "plain", "dtype": "bfloat16", "recompute": "none"}
    config = transformer_config(model, Layout(), **options, fp8=Fp8Settings(recipe=recipe))
    assert (config.fp8, config.fp8_recipe) == (number_format, recipe)
    assert transformer_config(model, Layout(), **options).fp8 is None
