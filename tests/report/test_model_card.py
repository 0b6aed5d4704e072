"""What the model card says, read back by the hub's own reader and by a Markdown parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_vr.errors import CheckpointError
from megatron_vr.report.model_card import (
    Base,
    read_front_matter,
    render,
    stated_licence,
)
from tests.report.card_reader import (
    blocks,
    facts,
    headings,
    metadata,
    settings,
    table,
    tables,
    text,
)

ALWAYS = {
    "library_name": "transformers",
    "pipeline_tag": "text-generation",
    "tags": ["megatron-vr", "variational-reasoning"],
}
APACHE = {"license": "apache-2.0"}
OTHER = {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}


@pytest.mark.parametrize("licence", [APACHE, OTHER, {"license": ["mit", "cc-by-4.0"]}])
def test_the_front_matter_names_base_and_its_licence(licence: dict[str, Any]) -> None:
    card = render(facts(base=Base("hub", "Qwen/Qwen3-4B", licence)))
    assert metadata(card) == {"base_model": "Qwen/Qwen3-4B", **licence, **ALWAYS}


@pytest.mark.parametrize(
    ("base", "told"),
    [
        (Base("hub", "org/base", OTHER), "states this licence: other (qwen-research, LICENSE)"),
        (Base("folder", "my-base", APACHE), "my-base, states this licence: apache-2.0"),
        (Base("hub", "org/base", {}), "org/base, states no licence, so none is stated here"),
        (Base("folder", "my-base", {}), "my-base, states no licence, so none is stated here"),
        (Base("random", "layers 2", {}), "no base's licence applies"),
    ],
)
def test_a_licence_is_told_where_the_base_states_one_and_never_made_up(
    base: Base, told: str
) -> None:
    card = render(facts(base=base))
    assert told in text(card)
    found = metadata(card)
    assert {key: value for key, value in found.items() if "licen" in key} == dict(base.licence)
    assert ("base_model" in found) == (base.kind == "hub"), "only a hub id is a base_model"


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# Base\nlicense: mit\n", APACHE),
        ("\ufeff---\r\nlicense: apache-2.0\r\n---\r\ntext", APACHE),
        ("---\n" + yaml.safe_dump(OTHER) + "---", OTHER),
        ("---\ntags: [x]\n---\n", {}),
        ("---\nlicense:\nlicense_link: LICENSE\n---\n", {}),
        ("# Base\n\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("---\n- license\n---\n", {}),
        ("", {}),
    ],
)
def test_a_licence_is_read_from_the_front_matter_alone(card: str, licence: dict[str, str]) -> None:
    assert stated_licence(read_front_matter(card, "README.md")) == licence


def test_front_matter_that_is_not_yaml_is_an_error_that_names_the_file() -> None:
    with pytest.raises(CheckpointError, match=r"base/README\.md is not YAML.*correct it"):
        read_front_matter("---\nlicense: [\n---\n", "base/README.md")


def test_the_results_are_a_table_with_errors_and_this_models_row_marked() -> None:
    rows = ("start", "rft", "variational")
    both = (table("all", rows, "rft"), table("hard", rows, "rft"))
    everything, hard = tables(render(facts(tables=both)))[1:]
    numbers = [".500 ± .012", ".731 ± .100", "–"]
    heads = ["greedy answer", "mean of samples", "pass@8"]
    assert everything == [
        ["row", "learns from", *heads],
        ["start", "how start learns", *numbers],
        ["*rft* (this model)", "how rft learns", *numbers],
        ["variational", "how variational learns", *numbers],
    ]
    assert hard == [
        ["row", *heads],
        *([name, *numbers] for name in ("start", "*rft* (this model)", "variational")),
    ]
    assert "Hard (30 questions)" in text(render(facts(tables=both)))


def test_a_model_that_was_not_evaluated_says_so() -> None:
    card = render(facts(tables=(), not_evaluated=("rft", "variational")))
    assert "This model has not been evaluated." in text(card)
    assert "Not evaluated: rft and variational." in text(card)
    assert len(tables(card)) == 1, "the settings' table alone"
    others = render(facts(tables=(table("all", ("start",), ""),), not_evaluated=("variational",)))
    assert "This model has not been evaluated." in text(others)
    assert "not been evaluated" not in text(render(facts()))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "the 2 answers sampled after z that the verifier accepts"),
        (["weights.estimator=gml"], "the geometric mean likelihood of the reference answer"),
        (["weights.estimator=likelihood"], "times the number of correct answers"),
        ([], "is the geometric mean over the tokens of z"),
        (["weights.ratio=sequence"], "is the full product over the tokens of z"),
        (["weights.ratio=none"], "r is 1"),
        ([], "normalised to 1 over the traces of its question"),
        (["weights.normalise=none"], "and not normalised"),
        ([], "sees the answer y' of a question x as a hint"),
        (["posterior.hint=false"], "sees no answer"),
        (["traces.sampler=policy"], "rejection sampling on its own accepted outputs"),
        (["traces.sampler=policy", "weights.normalise=none"], "as much as any other accepted"),
        (["traces.sampler=none"], "fine-tuned on reference traces"),
    ],
)
def test_what_was_done_is_told_in_words(overrides: list[str], told: str) -> None:
    card = text(render(facts(settings=settings(*overrides))))
    assert told in card
    assert ("with importance weights" in card) == ("traces.sampler" not in " ".join(overrides))


def test_the_start_of_a_run_is_told_as_such() -> None:
    card = render(facts(iteration=0))
    assert "fine-tuned on reference traces: the start, π₀" in text(card)
    assert "Weights" not in headings(card)


def test_data_are_told_with_their_counts() -> None:
    card = text(render(facts()))
    assert "Train: toy:train (40 questions, 12 with a reference trace)" in card
    assert "Validation: none" in card


def test_the_settings_are_complete_without_the_machines_paths_and_without_secrets() -> None:
    given = settings(
        "model={path: /home/ada/models/base}",
        "prompts.format=/home/ada/formats/mine",
        "problems.train=[{kind: file, path: /home/ada/data/train.jsonl}, "
        "{kind: dataset, name: org/set}, {kind: dataset, name: data/here}]",
        "problems.validation=[{kind: reasoning-gym, tasks: [x], count: 3, "
        "parameters: {file: ~/words.txt, api_key: hunter2, note: hf_0123456789abcdefXYZ}}]",
        "report.wandb_project=file:///home/ada/x",
    )
    made = facts(settings=given, base=Base("folder", "base", {}), local=frozenset({"data/here"}))
    card = render(made)
    found = yaml.safe_load(blocks(card)["yaml"])
    expected = given.model_dump(mode="json")
    expected["run"]["folder"] = "mine"
    expected["model"]["path"] = "base"
    expected["prompts"]["format"] = "mine"
    expected["report"]["wandb_project"] = "x"
    train, validation = expected["problems"]["train"], expected["problems"]["validation"]
    train[0]["path"], train[2]["name"] = "train.jsonl", "here"
    validation[0]["parameters"] = {
        "file": "words.txt",
        "api_key": "(removed)",
        "note": "(removed)",
    }
    assert found == expected
    for part in ("/home", "ada", "hunter2", "hf_0123456789"):
        assert part not in card, f"{part!r} is nobody's business"


def test_a_base_of_the_hub_keeps_its_id_in_the_settings() -> None:
    card = render(facts(settings=settings("model={path: Qwen/Qwen3-4B}")))
    assert yaml.safe_load(blocks(card)["yaml"])["model"]["path"] == "Qwen/Qwen3-4B"


def test_the_example_loads_the_model_and_generates(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks(render(facts(repo=str(models["export-policy"]))))["python"]
    exec(code.replace("your question", "S c1 W c2 G c3"), {})
    words = capsys.readouterr().out.split()
    limit = settings().evaluation.max_new_tokens
    assert len(words) == limit or (words[-1] == "<eos>" and len(words) <= limit)
