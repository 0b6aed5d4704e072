"""`--fp8-check`: two real halves side by side, kills and stops between them, and the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from megatron_vr.algorithm.fp8_check import PICTURE, RESULT, read_check
from megatron_vr.errors import StageError
from megatron_vr.traces.fingerprint import make_fingerprint
from megatron_vr.traces.store import StageFolder
from megatron_vr.traces.tables import EXAMPLES
from megatron_vr.training.checked import Checked
from tests.algorithm.fp8_check_jobs import (
    NAMES,
    STEPS,
    killed_between,
    one_process,
    resumed,
    two_ranks,
)
from tests.algorithm.tiny_run import run
from tests.parallel.launch import run_ranks
from tests.training.jobs import POISONED, rows
from tests.training.reference import hugging_face

FIRST, SECOND = NAMES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and the same without a number for a token that one example alone has."""
    folder = tmp_path_factory.mktemp("check")
    model = hugging_face("qwen3-untied")
    model.save_pretrained(folder / "qwen3-untied")
    others = {token for i, row in enumerate(rows()) if i != POISONED for token in row["token_ids"]}
    token = next(token for token in rows()[POISONED]["token_ids"][:-1] if token not in others)
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = math.nan
    model.save_pretrained(folder / "poisoned")
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    (found,) = run_ranks(one_process, 1, str(folder))
    return dict(found)


def test_the_first_half_is_the_training_itself_step_by_step(found: dict[str, Any]) -> None:
    assert len(found["trained"]) == 30
    assert list(found["same"].reference.losses) == found["trained"][:STEPS]


def test_two_precisions_have_a_small_gap_that_is_not_zero(found: dict[str, Any]) -> None:
    checked: Checked = found["same"]
    assert checked.fault is None
    assert checked.verdict.gap is not None and 0 < abs(checked.verdict.gap) < 0.02
    assert not checked.tried.not_finite and checked.speedup > 0


def test_one_model_is_freed_before_the_next_is_built(found: dict[str, Any]) -> None:
    assert found["halves"] == [FIRST, SECOND]
    assert found["alive"] == {FIRST: 1, SECOND: 1}


def test_a_training_keeps_its_checkpoints_and_metrics(found: dict[str, Any]) -> None:
    assert found["left"] == sorted(["fp8-check", RESULT, PICTURE, "float32.json"])
    assert found["metrics again"] == found["trained"]


def test_what_was_found_lies_in_the_folder(folder: Path, found: dict[str, Any]) -> None:
    trained = folder / "runs" / "trained"
    assert (trained / PICTURE).read_bytes().startswith(b"\x89PNG")
    content = json.loads((trained / RESULT).read_text(encoding="utf-8"))
    assert content["verdict"]["steps"] == 3, "the last check asked for 3 steps"
    assert read_check(folder / "runs" / "wrecked") == found["wrecked"]


def test_the_first_half_is_kept_for_the_same_settings_alone(found: dict[str, Any]) -> None:
    assert found["again"] == [SECOND]
    assert found["other steps"] == [FIRST, SECOND]


def test_a_wrecked_training_fails_in_one_sentence(found: dict[str, Any]) -> None:
    fault = found["wrecked"].fault
    assert fault is not None and "\n" not in fault
    assert "bfloat16 is +" in fault and "0.50% is allowed (--fp8-gap 0.005)" in fault
    assert "over the last 10 of 12 steps" in fault


def test_losing_finiteness_fails_and_names_the_step(found: dict[str, Any]) -> None:
    checked: Checked = found["poisoned"]
    assert checked.tried.not_finite and not checked.reference.not_finite
    assert len(checked.tried.losses) == STEPS, "the steps after it are made all the same"
    assert checked.fault is not None
    assert f"not finite at step {checked.tried.not_finite[0]} of {STEPS}" in checked.fault


def test_a_training_of_fewer_steps_is_refused(found: dict[str, Any]) -> None:
    assert "SettingsError: a test has 30 steps, fewer than the 31" in found["too many"]


def test_a_stop_in_the_second_half_keeps_the_first(found: dict[str, Any]) -> None:
    stopped = found["stopped"]
    assert stopped["said"].startswith("Requeue: asked to stop after step 1 of 12 in bfloat16")
    assert stopped["results"] == [], "a check that did not end has found nothing"
    assert stopped["again"] == [SECOND]


def test_a_kill_in_the_second_half_keeps_the_first(folder: Path, found: dict[str, Any]) -> None:
    start, into = str(folder / "qwen3-untied"), folder / "killed"
    with pytest.raises(ProcessExitedException) as killed:
        run_ranks(killed_between, 1, start, str(into))
    assert killed.value.signal_name == "SIGKILL"
    assert not (into / RESULT).exists()
    ((made, checked),) = run_ranks(resumed, 1, start, str(into))
    assert made == [SECOND]
    assert checked.reference.losses == found["same"].reference.losses
    assert checked.tried.losses == found["same"].tried.losses


def test_two_ranks_find_what_one_finds(folder: Path, found: dict[str, Any]) -> None:
    one, two = run_ranks(two_ranks, 2, str(folder / "qwen3-untied"), str(folder / "ranks"))
    assert one == two, "what is told is the main rank's, also of times"
    alone = found["same"]
    assert one.reference.losses == pytest.approx(alone.reference.losses, rel=1e-5)
    assert one.tried.losses == pytest.approx(alone.tried.losses, rel=1e-2)
    assert read_check(folder / "ranks") == one


# --- the folder


def test_a_check_does_not_settle_the_settings_of_a_training_that_has_not_begun(
    tmp_path: Path,
) -> None:
    """Another recipe is what one tries after a check that failed."""
    first, second = (
        StageFolder(tmp_path / "sft", make_fingerprint("sft", {"fp8": recipe}, {}))
        for recipe in ("delayed", "tensorwise")
    )
    first.open()
    (first.path / "fp8-check").mkdir()
    (first.path / RESULT).write_text("{}")
    (first.path / PICTURE).write_text("")
    second.check()
    second.open()
    left = {path.name for path in second.path.iterdir()}
    assert {"fp8-check", RESULT, PICTURE} <= left, "the training finds what the check left"
    second.write_part(0, EXAMPLES.empty_table())
    with pytest.raises(StageError, match=r"settings\.fp8: tensorwise → delayed"):
        first.check()


# --- the command


def test_without_fp8_there_is_nothing_to_check(tmp_path: Path) -> None:
    done = run(tmp_path / "run", "--fp8-check=5", "--iteration=0", verb="sft")
    assert done.returncode == 2
    assert "model.fp8 is not set" in done.stderr and "model.fp8=tensorwise" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--fp8-gap=0.1"], "give --fp8-check STEPS too"),
        (["--fp8-check=5", "--start-over"], "--start-over would delete"),
        (["--fp8-check=0"], "--fp8-check"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, options: list[str], told: str
) -> None:
    done = run(tmp_path / "run", *options, verb="train")
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["sft", "posterior", "train"])
def test_trainings_teach_the_check_and_other_stages_have_none(tmp_path: Path, verb: str) -> None:
    shown = run(tmp_path, "--help", verb=verb).stdout
    assert "--fp8-check" in shown and "0.005" in shown and "exit code 1" in " ".join(shown.split())
    assert "--fp8-check" not in run(tmp_path, "--help", verb="weigh").stdout
