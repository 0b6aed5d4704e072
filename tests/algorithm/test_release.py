"""From a run to its model on a stand-in hub, the card read back from what arrived."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev

import pytest
from huggingface_hub import ModelCard

from megatron_vr.algorithm.plan import make_plan
from megatron_vr.algorithm.release import card_facts, push_export
from megatron_vr.algorithm.run import Prepared
from megatron_vr.errors import CheckpointError, SettingsError, StageError
from megatron_vr.problems.prompts import load_format
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.report.model_card import CardFacts, ResultRow
from tests.algorithm.tiny_run import ROOT, command, environment, run
from tests.convert.hub_client import connect
from tests.convert.hub_server import Hub, serve
from tests.report.card_reader import blocks, tables, text
from tests.report.synthetic import Written, write_run
from tests.report.tiny_models import write_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    connect(monkeypatch, tmp_path)
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "policy", seed=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Written:
    """A finished run of one iteration; its numbers are drawn."""
    folder = tmp_path_factory.mktemp("run") / "full"
    return write_run(folder, models={"export-policy": model})


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Written:
    """The same with two iterations."""
    folder = tmp_path_factory.mktemp("run") / "twice"
    return write_run(folder, "run.iterations=2", models={"export-policy": model})


def prepared(written: Written) -> Prepared:
    return Prepared(written.settings, 1, make_plan(written.settings, {}))


def own_rows(facts: CardFacts) -> list[ResultRow]:
    return [row for row in facts.tables[0].rows if row.mine]


def by_hand(written: Written, place: str, metric: int) -> tuple[float, float]:
    """Mean and standard error over questions of the greedy answer (0) or of the samples (1)."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in written.of(place):
        if (row["index"] == -1) == (metric == 0):
            found[row["problem_id"]].append(float(row["accepted"]))
    means = [fmean(values) for values in found.values()]
    return fmean(means), stdev(means) / len(means) ** 0.5


def test_a_push_brings_the_exported_model_and_a_card_privately(
    hub: Hub, full: Written, model: Path
) -> None:
    address = push_export(prepared(full), "variational", 1, "org/name", endpoint=hub.address)
    repo = hub.repos["org/name"]
    assert repo.private
    assert repo.messages[1:] == ["Row variational, iteration 1"]
    assert address.endswith(repo.commits[-1][0])
    for file in model.iterdir():
        assert repo.files[file.name] == file.read_bytes(), file.name
    card = repo.files["README.md"].decode()
    assert ModelCard(card).data.library_name == "transformers"
    assert str(full.folder.parent) not in card, "a path of this machine"
    assert "Train: toy:train (40 questions)" in text(card)
    asked = [problem.question for found in full.problems.values() for problem in found]
    assert [question for question in asked if question in card] == []


def test_a_public_push_is_public(hub: Hub, full: Written) -> None:
    push_export(prepared(full), "rft", 1, "name", private=False, endpoint=hub.address)
    assert not hub.repos["ada/name"].private
    card = hub.repos["ada/name"].files["README.md"].decode()
    assert "name = 'ada/name'" in blocks(card)["python"]


@pytest.mark.parametrize("arm", ["variational", "rft"])
def test_the_results_are_those_of_the_runs_own_verdicts(full: Written, arm: str) -> None:
    facts = card_facts(prepared(full), arm, 1, "org/name")
    everything, *bands = facts.tables
    names = ["start", "sft", "rft", "rft-per-question", "variational-no-hint", "variational"]
    assert [row.name for row in everything.rows] == names
    assert [(row.name, row.mine) for row in own_rows(facts)] == [(arm, True)]
    assert [band.scope for band in bands] == ["easy", "mid", "hard"]
    for row in everything.rows:
        iteration = 0 if row.name == "start" else 1
        place = f"iteration-{iteration}/evaluate"
        if row.name not in ("start", "variational"):
            place = f"comparisons/{row.name}/{place}"
        for metric in (0, 1):
            found, expected = row.scores[metric], by_hand(full, place, metric)
            assert found is not None
            assert (found.value, found.error) == pytest.approx(expected), (row.name, metric)


def test_the_start_can_be_pushed_under_either_name(full: Written) -> None:
    for arm in ("start", "variational"):
        facts = card_facts(prepared(full), arm, 0, "org/name")
        assert [row.name for row in own_rows(facts)] == ["start"]
        assert facts.about == "π₀: before any iteration"


def test_a_model_between_the_first_and_the_last_iteration_has_a_row_of_its_own(
    twice: Written,
) -> None:
    facts = card_facts(prepared(twice), "rft", 1, "org/name")
    (row,) = own_rows(facts)
    assert row.name == "rft, iteration 1"
    found = row.scores[1]
    expected = by_hand(twice, "comparisons/rft/iteration-1/evaluate", 1)
    assert found is not None and (found.value, found.error) == pytest.approx(expected)
    last = card_facts(prepared(twice), "rft", 2, "org/name")
    assert [row.name for row in own_rows(last)] == ["rft"]


def test_a_model_that_rows_share_is_told_by_the_rows_own_evaluation(
    tmp_path: Path, model: Path
) -> None:
    changes = ["run.iterations=2", "comparisons={rft: {evaluation.samples: 12}}"]
    written = write_run(tmp_path / "run", *changes, models={"export-policy": model})
    for arm, place in (("rft", "comparisons/rft/"), ("variational", "")):
        (row,) = own_rows(card_facts(prepared(written), arm, 1, "org/name"))
        found, expected = row.scores[1], by_hand(written, f"{place}iteration-1/evaluate", 1)
        assert row.name == f"{arm}, iteration 1"
        assert found is not None and (found.value, found.error) == pytest.approx(expected)


def test_a_model_that_was_not_evaluated_says_so(tmp_path: Path, model: Path) -> None:
    written = write_run(tmp_path / "run", models={"export-policy": model})
    (written.folder / "iteration-1" / "evaluate" / "_DONE.json").unlink()
    facts = card_facts(prepared(written), "variational", 1, "org/name")
    assert facts.not_evaluated == ("variational",)
    assert not facts.evaluated
    assert len(facts.tables[0].rows) == 5, "the other rows are known"
    for file in written.folder.glob("**/evaluate/_DONE.json"):
        file.unlink()
    assert card_facts(prepared(written), "variational", 1, "org/name").tables == ()


def test_a_model_that_is_not_exported_yet_is_told_with_the_command(
    hub: Hub, tmp_path: Path, model: Path
) -> None:
    written = write_run(tmp_path / "run", models={"export-policy": model})
    shutil.rmtree(written.folder / "comparisons" / "rft" / "iteration-1" / "export-policy")
    with pytest.raises(StageError, match=r"megatron-vr export CONFIG --iteration 1 --arm rft"):
        push_export(prepared(written), "rft", 1, "org/name", endpoint=hub.address)
    assert hub.requests == []


@pytest.mark.parametrize(("arm", "iteration"), [("nobody", 1), ("variational", 2), ("start", 1)])
def test_a_row_or_iteration_that_the_run_lacks_is_refused(
    full: Written, arm: str, iteration: int
) -> None:
    with pytest.raises(SettingsError, match=arm):
        push_export(prepared(full), arm, iteration, "org/name")


def test_an_export_whose_weights_are_gone_is_refused_before_the_hub_is_asked(
    hub: Hub, tmp_path: Path, model: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    written = write_run(tmp_path / "run", models={"export-policy": copy})
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        push_export(prepared(written), "variational", 1, "name", endpoint=hub.address)
    assert hub.requests == []


def test_the_prompt_of_the_card_is_the_one_that_was_trained(full: Written, model: Path) -> None:
    facts = card_facts(prepared(full), "variational", 1, "org/name")
    tokenizer = load_tokenizer(model)
    prompts = load_format("toy", tokenizer, "posterior")
    question = full.problems["test"][0].question
    prompt = "".join(question if piece.is_data else piece.text for piece in facts.prompt)
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids == prompts.policy_prompt(question)
    assert tokenizer.convert_tokens_to_ids(facts.end) == prompts.end_ids[0]


def export_command(folder: Path, hub: Hub, *options: str) -> subprocess.CompletedProcess[str]:
    """`megatron-vr export` of the run in `folder`, with the stand-in as its hub."""
    place = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [*command(folder, "comparisons={}", verb="export"), *options],
        capture_output=True,
        text=True,
        env=environment() | place,
        timeout=600,
        cwd=ROOT,
    )


def test_a_push_without_a_name_or_token_stops_before_anything_is_done(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export_command(tmp_path / "run", hub, "--public")
    assert (done.returncode, "--push ORG/NAME" in done.stderr) == (2, True), done.stderr
    done = export_command(tmp_path / "run", hub, "--push", "not a name")
    assert (done.returncode, "no name of a repository" in done.stderr) == (2, True), done.stderr
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    done = export_command(tmp_path / "run", hub, "--push", "org/name")
    assert (done.returncode, "hf auth login" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "run").exists()
    assert hub.requests == []


def test_a_real_run_is_pushed_and_its_model_loads_from_what_arrived(
    hub: Hub, tmp_path: Path
) -> None:
    folder = tmp_path / "real"
    done = run(folder, "comparisons={}")
    assert done.returncode == 0, done.stderr
    pushed = export_command(folder, hub, "--push", "org/name")
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.strip().endswith(hub.repos["org/name"].commits[-1][0])
    files = hub.repos["org/name"].files
    export = folder / "iteration-1" / "export-policy" / "model"
    assert {file.name: file.read_bytes() for file in export.iterdir()}.items() <= files.items()
    card = files["README.md"].decode()
    results = json.loads((folder / "results.json").read_text())["rows"]
    shown = {row[0].strip("*"): row[2:] for row in tables(card)[1][1:]}
    for name, row in (("start", "start"), ("variational", "variational* (this model)")):
        numbers = [float(cell.split(" ")[0]) for cell in shown[row]]
        metrics = [results[name][metric] for metric in ("greedy", "accuracy", "pass@8")]
        assert numbers == pytest.approx(metrics, abs=6e-4), name
    assert "Train: toy:train (48 questions, 32 with a reference trace)" in text(card)
    arrived = tmp_path / "arrived"
    arrived.mkdir()
    for name, content in files.items():
        (arrived / name).write_bytes(content)
    code = blocks(card)["python"].replace("'org/name'", repr(str(arrived)))
    exec(code.replace("your question", "S c1 G c3"), names := {})
    assert names["output"].shape[1] > names["ids"].shape[1]
