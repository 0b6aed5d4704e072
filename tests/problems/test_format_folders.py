from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from megatron_vr.errors import SettingsError
from megatron_vr.problems.format_rules import SHIPPED
from megatron_vr.problems.prompts import load_format
from megatron_vr.problems.toy_tokenizer import make_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A format of the user's own, like the toy's."""
    return Path(shutil.copytree(SHIPPED / "toy", tmp_path / "mine"))


def load(folder: Path, posterior: str = "posterior") -> object:
    return load_format(str(folder), make_tokenizer(), posterior)


def test_a_folder_of_the_users_own_is_a_format(folder: Path) -> None:
    (folder / "posterior-short.jinja").write_text("<hint> {{ hint }} </hint> {{ question }}")
    (folder / "policy.jinja").write_text("<bos> {% include 'body.jinja' %}")
    (folder / "body.jinja").write_text("{{ question }} {{ question }}")
    prompts = load_format(str(folder), make_tokenizer(), "short")
    assert prompts.decode(prompts.posterior_prompt("S c1", "D")) == "<hint> D </hint> S c1"
    assert prompts.decode(prompts.policy_prompt("S c1")) == "<bos> S c1 S c1"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("<bos> {{ question }} {{ hint }}", "'hint' is undefined"),
        ("<bos> {{ question | upper }}", "without a filter"),
        ("<bos> {{ question | trim }}", "without a filter"),
        ("<bos> {{ question | length }}", "does not insert"),
        ("<bos> <think>", "does not insert"),
        ("<bos> {{ question ", "line 1"),
        ("{{ question }} {{ question.__class__.__mro__ }}", "SecurityError"),
        ("{{ question }} {% include '../policy.jinja' %}", "TemplateNotFound"),
        ("{{ question }} {{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_faulty_template_is_named_before_anything_runs(
    template: str, message: str, folder: Path
) -> None:
    (folder / "policy.jinja").write_text(template)
    with pytest.raises(SettingsError, match=message) as caught:
        load(folder)
    assert "policy.jinja" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trace": {"open": "", "close": ""}}, "trace.close"),
        ({"answer_text": {"default": "42"}}, "{answer}"),
        ({"answer_text": {"math": "{answer}"}}, "default"),
        ({"ends": "<eos>"}, "ends"),
        ({"end": "<end>"}, "did you mean"),
        ({"special_tokens": ["<sep>"]}, "<sep>"),
    ],
)
def test_a_faulty_rule_is_named(change: dict[str, object], message: str, folder: Path) -> None:
    path = folder / "format.yaml"
    rules = yaml.safe_load(path.read_text()) | change
    path.write_text(yaml.safe_dump(rules))
    with pytest.raises(SettingsError) as caught:
        load(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["format.yaml", "policy.jinja"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(SettingsError, match=name):
        load(folder)
