"""Two folders are called the same model exactly when they are."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_vr.convert.check import Verdict, check
from megatron_vr.convert.compare import same
from megatron_vr.convert.logits import LogitGap, gap
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.convert.verdict_page import page
from megatron_vr.errors import CheckpointError
from megatron_vr.parallel.layout import Layout
from tests.convert.stored import write_folder

NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_folder(tmp_path_factory.mktemp("check") / "hf")
    # Not a tokenizer: the prompts are random ids.
    (folder / "tokenizer.json").unlink()
    return folder


def copied(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """The source with other tensors."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def states(verdict: Verdict) -> dict[str, str]:
    return {tensor.name: tensor.state for tensor in verdict.tensors if tensor.state != "equal"}


def nudge(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME][3, 5] = torch.nextafter(tensors[NAME][3, 5], torch.tensor(9.0))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe"])
def test_a_converted_model_is_the_same_by_bits_and_logits(family: str, tmp_path: Path) -> None:
    """Transformers computes the logits of one, Megatron those of the other."""
    source = write_folder(tmp_path / "hf", family)
    (source / "tokenizer.json").unlink()
    convert_to_megatron(source, tmp_path / "megatron", Layout(tensor=2, pipeline=2))
    verdict = check(source, tmp_path / "megatron")
    assert verdict.same, page(verdict)
    assert verdict.kinds == ("Hugging Face", "Megatron")
    assert not states(verdict)
    assert verdict.logits is not None
    assert verdict.logits.compute == "float32"
    assert verdict.logits.max_abs <= 1e-4
    assert verdict.logits.spread > 0.1, "logits that do not spread tell nothing"


def test_a_single_changed_bit_is_found_and_named(source: Path, tmp_path: Path) -> None:
    verdict = check(source, copied(source, tmp_path / "b", nudge), with_logits=False)
    assert states(verdict) == {NAME: "differs"}
    assert not verdict.same
    text = page(verdict)
    assert text.startswith("# NOT the same model")
    assert f"{NAME}: differs (1 of 6144 elements, by" in text


def test_a_changed_tensor_changes_the_logits_of_both_libraries(
    source: Path, tmp_path: Path
) -> None:
    other = copied(source, tmp_path / "b", lambda tensors: tensors[NAME].mul_(1.01))
    convert_to_megatron(other, tmp_path / "megatron", Layout())
    for changed in (other, tmp_path / "megatron"):
        logits = check(source, changed).logits
        assert logits is not None
        assert logits.max_abs > 1e-4, f"{changed.name}'s logits do not depend on {NAME}"
        assert not logits.acceptable


def test_a_rounded_copy_is_the_same_model_as_far_as_it_can_be(source: Path, tmp_path: Path) -> None:
    convert_to_megatron(source, tmp_path / "megatron", Layout())
    convert_to_hf(tmp_path / "megatron", tmp_path / "bf16", dtype="bfloat16")
    verdict = check(source, tmp_path / "bf16")
    assert set(states(verdict).values()) == {"rounded"}
    assert len(states(verdict)) == len(verdict.tensors)
    assert verdict.logits is not None
    assert verdict.logits.compute == "bfloat16"
    assert verdict.same, page(verdict)
    assert "config.json differs" in verdict.side_files
    wrong = copied(tmp_path / "bf16", tmp_path / "wrong", lambda t: t[NAME].neg_())
    assert states(check(source, wrong, with_logits=False))[NAME] == "differs"


def test_bfloat16_logits_of_the_two_libraries_agree(source: Path, tmp_path: Path) -> None:
    convert_to_megatron(source, tmp_path / "megatron", Layout())
    convert_to_hf(tmp_path / "megatron", tmp_path / "bf16", dtype="bfloat16")
    convert_to_megatron(tmp_path / "bf16", tmp_path / "megatron-bf16", Layout())
    verdict = check(tmp_path / "bf16", tmp_path / "megatron-bf16")
    assert verdict.logits is not None
    assert verdict.logits.compute == "bfloat16"
    assert verdict.same, page(verdict)


def test_models_of_other_shapes_are_told_apart_by_field(source: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", intermediate_size=128)
    verdict = check(source, other)
    assert verdict.architecture == ("ffn_hidden_size: 96 and 128",)
    assert states(verdict)[NAME] == "shape"
    assert verdict.logits is None
    assert not verdict.same


def test_what_a_conversion_rightly_drops_is_no_difference(tmp_path: Path) -> None:
    tied = write_folder(tmp_path / "tied", tied=True)
    llama = write_folder(tmp_path / "llama", "llama")
    for folder, name, value in [
        (
            tied,
            "lm_head.weight",
            load_file(tied / "model.safetensors")["model.embed_tokens.weight"],
        ),
        (llama, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)),
    ]:
        tensors = load_file(folder / "model.safetensors") | {name: value.clone()}
        save_file(tensors, folder / "model.safetensors")
        megatron = tmp_path / f"{folder.name}-megatron"
        convert_to_megatron(folder, megatron, Layout())
        verdict = check(folder, megatron, with_logits=False)
        assert verdict.same, page(verdict)


def test_neither_half_precision_is_the_other_rounded() -> None:
    x = torch.tensor([1.0, 0.1])
    for first, second in ((torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)):
        assert same("x", x.to(first), x.to(first).to(second)).state == "differs"
    beyond = torch.tensor([1e5])
    assert same("x", beyond, beyond.half()).state == "differs", "an overflow is no rounding"


def test_a_folder_that_is_not_its_own_model_is_an_error(source: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"lacks tensors .*{NAME}"):
        check(source, copied(source, tmp_path / "b", lambda tensors: tensors.pop(NAME)))


def test_not_a_number_equals_itself_bit_for_bit_but_makes_no_verdict() -> None:
    x = torch.tensor([float("nan"), 1.0])
    assert same("x", x, x.clone()).state == "equal"
    assert same("x", torch.tensor([0.0]), torch.tensor([-0.0])).state == "differs"
    with pytest.raises(CheckpointError, match="not finite"):
        gap([x[None]], [x[None]], "float32", True)


@pytest.mark.parametrize(
    ("compute", "shift", "acceptable"),
    [
        ("float32", 0.9e-4, True),
        ("float32", 1.1e-4, False),
        ("bfloat16", 0.015, True),
        ("bfloat16", 0.03, False),
    ],
)
def test_how_far_logits_may_be_apart(compute: Any, shift: float, acceptable: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 1000, generator=generator, dtype=torch.float64)
    found = gap([logits], [logits + shift], compute, True)
    assert found.spread == pytest.approx(1.0, abs=0.05)
    assert found.acceptable is acceptable


def test_tokens_preferred_otherwise_are_not_acceptable() -> None:
    found = LogitGap("bfloat16", 100, 0.1, 0.001, 0.9, 1.0, True)
    assert not found.acceptable


PROGRAM = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from megatron_vr.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv, out, err = ["megatron-vr", "convert", *words], io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def commands(*lines: tuple[object, ...]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and error of `megatron-vr convert` for each line of arguments,
    one after the other in one process: most of a command's time is its imports."""
    words = json.dumps([[str(word) for word in line] for line in lines])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return [(code, out, err) for code, out, err in map(json.loads, done.stdout.splitlines())]


def test_the_commands_there_back_and_check(source: Path, tmp_path: Path) -> None:
    megatron, back, written = tmp_path / "megatron", tmp_path / "back", tmp_path / "page.md"
    there, again, checked = commands(
        ("to-megatron", source, megatron, "--tp", 2, "--pp", 2, "--json"),
        ("to-hf", megatron, back),
        ("check", source, back, "--no-logits", "--page", written),
    )
    assert there[0] == 0, there
    assert json.loads(there[1])["folder"] == str(megatron)
    assert again[0] == 0, again
    assert checked[0] == 0, checked
    assert checked[1].startswith("# The same model")
    assert written.read_text() in checked[1]


def test_the_commands_say_what_is_wrong_in_one_line(source: Path, tmp_path: Path) -> None:
    wrong = copied(source, tmp_path / "wrong", nudge)
    expected = [
        (("to-megatron", source, tmp_path / "x", "--tp", 3), "--tp 3 does not divide", 2),
        (("to-megatron", source, wrong), "exists and is not empty", 1),
        (("to-hf", source, tmp_path / "x"), "is not a finished Megatron checkpoint", 1),
        (("check", source, wrong, "--compute", "int8"), "--compute 'int8' is unknown", 2),
    ]
    different = ("check", source, wrong, "--no-logits", "--json")
    *told, verdict = commands(*(arguments for arguments, _, _ in expected), different)
    for (_, message, code), (ended, out, err) in zip(expected, told, strict=True):
        assert (ended, out) == (code, ""), err
        lines = err.splitlines()
        assert len(lines) == 1, err
        assert message in lines[0]
    assert verdict[0] == 1
    assert json.loads(verdict[1])["not_equal"][0]["name"] == NAME
