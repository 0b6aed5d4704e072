"""An FP8 release holds what modelopt's layout asks for, computes what was quantised, or is not
there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_vr.convert.fp8_reload import load_fp8
from megatron_vr.convert.quantise import Quantised, quantise
from tests.convert.small_release import (
    GENERATION,
    stock_model,
    text_ids,
    write_source,
    write_texts,
)

Tensors = dict[str, torch.Tensor]
MATRIX = re.compile(r"(model\.layers\.\d+)\.(self_attn\.[qkvo]|mlp\.(?:gate|up|down))_proj\.weight")
JOINED = {
    "self_attn.q": ("self_attn.q", "self_attn.k", "self_attn.v"),
    "mlp.gate": ("mlp.gate", "mlp.up"),
}
SHARED_BY = {member: group for group in JOINED.values() for member in group}
CASES = {
    "qwen2-bfloat16": ("qwen2", False, torch.bfloat16),
    "qwen3-tied-float32": ("qwen3", True, torch.float32),
    "llama-float16": ("llama", False, torch.float16),
}


@dataclass(frozen=True)
class Release:
    source: Path
    folder: Path
    figures: Quantised
    dtype: torch.dtype
    tied: bool

    @property
    def before(self) -> Tensors:
        return load_file(self.source / "model.safetensors")

    @property
    def after(self) -> Tensors:
        return load_file(self.folder / "model.safetensors")


@pytest.fixture(scope="module", params=list(CASES))
def release(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Release:
    family, tied, dtype = CASES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    source = write_source(root / "source", family, tied, dtype)
    texts = write_texts(root / "texts.jsonl")
    figures = quantise(source, root / "fp8", format="fp8", calibration=texts)
    return Release(source, root / "fp8", figures, dtype, tied)


def test_the_decoders_matrices_are_fp8_and_nothing_else_changed(release: Release) -> None:
    before, after = release.before, release.after
    if release.tied:
        del before["lm_head.weight"]
    matrices = {name for name in before if MATRIX.fullmatch(name)}
    assert len(matrices) == 2 * 7 == release.figures.matrices
    assert {n for n, t in after.items() if t.dtype == torch.float8_e4m3fn} == matrices
    layers = {name.removesuffix(".weight") for name in matrices}
    scales = {f"{layer}.{kind}_scale" for layer in layers for kind in ("weight", "input")}
    assert set(after) == set(before) | scales
    assert {(after[name].dtype, after[name].shape) for name in scales} == {(torch.float32, ())}
    for name in set(before) - matrices:
        assert after[name].dtype == release.dtype, name
        assert after[name].equal(before[name]), f"{name} is not the source's"


def test_a_weight_scale_is_the_largest_weight_an_engine_joins_over_448(release: Release) -> None:
    before, after = release.before, release.after
    for name in filter(MATRIX.fullmatch, before):
        layer, leaf = MATRIX.fullmatch(name).groups()  # type: ignore[union-attr]
        members = [f"{layer}.{member}_proj.weight" for member in SHARED_BY.get(leaf, (leaf,))]
        largest = max(float(before[member].double().abs().max()) for member in members)
        found = float(after[name.replace(".weight", ".weight_scale")])
        assert found == pytest.approx(largest / 448, rel=1e-7), name


def test_an_input_scale_is_the_largest_input_over_448(release: Release) -> None:
    model = stock_model(release.source, release.dtype)
    largest: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: Any, inputs: Any) -> None:
            largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

        return hook

    for name, module in model.named_modules():
        if MATRIX.fullmatch(f"{name}.weight"):
            module.register_forward_pre_hook(watch(name))
    with torch.no_grad():
        for ids in text_ids():
            model(torch.tensor([ids]))
    found = {name: float(release.after[f"{name}.input_scale"]) for name in largest}
    assert len(largest) == 14
    assert found == pytest.approx({n: v / 448 for n, v in largest.items()}, rel=1e-7)


def test_a_weight_is_within_half_an_fp8_step_of_the_source(release: Release) -> None:
    before, after = release.before, release.after
    for name in filter(MATRIX.fullmatch, before):
        scale = after[name.replace(".weight", ".weight_scale")].double()
        true = before[name].double() / scale
        # Three bits after the leading one; below 2^-6 the steps stay as they are.
        exponent = true.abs().clamp(min=2.0**-6).log2().floor()
        excess = (after[name].double() - true).abs() / (0.5 * 2.0 ** (exponent - 3))
        assert float(excess.max()) <= 1 + 1e-5, f"{name} is {float(excess.max())} half steps off"


def test_what_was_written_computes_what_was_quantised(release: Release) -> None:
    figures = release.figures
    assert (figures.reload.max_abs, figures.reload.top1_agreement) == (0.0, 1.0)
    stock, reloaded = (
        stock_model(release.source, release.dtype),
        load_fp8(release.folder, release.dtype, "cpu"),
    )
    with torch.no_grad():
        gaps = [
            (stock(i).logits.float() - reloaded(i).logits.float()).abs().flatten()
            for i in (torch.tensor([ids]) for ids in text_ids())
        ]
    mean = float(torch.cat(gaps).double().mean())
    assert figures.unquantised.mean_abs == pytest.approx(mean, rel=1e-3)
    assert mean > 0, "quantisation changed nothing: the comparison compares a model with itself"
    assert figures.compared_tokens == figures.calibration_tokens == sum(map(len, text_ids()))
    assert not figures.held_out
    json.dumps(dataclasses.asdict(figures))


def test_the_reload_is_a_plain_model_of_dequantised_values(release: Release) -> None:
    """The reference: Transformers' layers, weights multiplied out, inputs rounded by division."""
    after = release.after
    model = stock_model(release.source, torch.float32)

    def rounded(scale: torch.Tensor) -> Callable[..., Any]:
        return lambda _, x: (x[0] / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    for name, module in model.named_modules():
        if f"{name}.input_scale" in after:
            weight = after[f"{name}.weight"].float() * after[f"{name}.weight_scale"]
            module.weight = torch.nn.Parameter(weight)
            module.register_forward_pre_hook(rounded(after[f"{name}.input_scale"]))
    reloaded = load_fp8(release.folder, torch.float32, "cpu")
    ids = torch.tensor([text_ids()[0]])
    with torch.no_grad():
        gap = (model(ids).logits - reloaded(ids).logits).abs().mean()
    assert float(gap) < 0.05 * release.figures.unquantised.mean_abs


def test_files_beside_the_weights_are_the_sources(release: Release) -> None:
    ours = {"model.safetensors", "config.json", "hf_quant_config.json"}
    beside = {path.name for path in release.source.iterdir()} - ours
    assert {path.name for path in release.folder.iterdir()} == ours | beside
    assert {"generation_config.json", "LICENSE", "tokenizer.json", "chat_template.jinja"} <= beside
    for name in beside:
        assert (release.folder / name).read_bytes() == (release.source / name).read_bytes(), name
    assert (release.folder / "generation_config.json").read_text() == GENERATION
    config = json.loads((release.folder / "config.json").read_text())
    assert config.pop("quantization_config")["quant_method"] == "modelopt"
    assert config == json.loads((release.source / "config.json").read_text())


def test_the_layout_is_that_of_modelopts_own_exporter(release: Release, tmp_path: Path) -> None:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    model = stock_model(release.source, release.dtype)

    def loop(model: Any) -> None:
        for ids in text_ids():
            model(torch.tensor([ids]))

    mtq.quantize(model, mtq.FP8_DEFAULT_CFG, loop)
    model.generation_config.top_p = None  # It would not save this pair.
    export_hf_checkpoint(model, export_dir=tmp_path)
    theirs, ours = load_file(tmp_path / "model.safetensors"), release.after
    assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {
        n: (t.dtype, t.shape) for n, t in theirs.items()
    }
    for name in theirs:
        if name.endswith("input_scale"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-6), name
    assert described(release.folder) == described(tmp_path)


def described(folder: Path) -> tuple[Any, Any]:
    """What an engine is told of the quantisation, in either file."""
    config = json.loads((folder / "config.json").read_text())
    return config["quantization_config"], json.loads((folder / "hf_quant_config.json").read_text())


def test_without_texts_the_model_continues_prompts_itself(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "qwen3", False, torch.bfloat16)

    def make(name: str, seed: int) -> tuple[Quantised, Tensors]:
        figures = quantise(
            source,
            tmp_path / name,
            format="fp8",
            calibration=None,
            max_tokens=96,
            samples=9,
            seed=seed,
        )
        return figures, load_file(tmp_path / name / "model.safetensors")

    (figures, one), (_, again), (_, other) = make("a", 1), make("b", 1), make("c", 2)
    assert figures.held_out and figures.calibration_sequences == 8
    scales = [name for name in one if name.endswith("input_scale")]
    assert all(one[name].equal(again[name]) for name in scales)
    assert any(not one[name].equal(other[name]) for name in scales), "the seed changes nothing"
