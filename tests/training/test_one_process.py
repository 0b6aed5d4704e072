"""One process that trains, is killed, resumes, refuses and scores, against plain torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from tests.parallel.launch import run_ranks
from tests.training.cases import ONE_RANK, Case
from tests.training.incidents import killed_while_saving
from tests.training.jobs import POISONED, rows
from tests.training.ranks import one_rank
from tests.training.reference import (
    Reference,
    check_resumption,
    check_scores,
    check_stopped,
    check_training,
    hugging_face,
    reference_trainings,
)


@dataclass(frozen=True)
class Measured:
    """The references of all cases, what the process found, and what ended the killed one."""

    references: dict[str, Reference]
    found: dict[str, Any]
    kill: str


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("one")
    references = reference_trainings(ONE_RANK, folder)
    broken = hugging_face("qwen3-untied")
    with torch.no_grad():
        broken.lm_head.weight[rows()[0]["token_ids"][0]] = float("nan")
    broken.save_pretrained(folder / "not-a-number")
    poison(folder / "poisoned")
    kill = killed(folder)
    (found,) = run_ranks(one_rank, 1, str(folder))
    return Measured(references, found, kill)


def poison(folder: Path) -> None:
    """A model that reads no number at a token that only the example POISONED has."""
    others = {token for i, row in enumerate(rows()) if i != POISONED for token in row["token_ids"]}
    token = next(token for token in rows()[POISONED]["token_ids"][:-1] if token not in others)
    model = hugging_face("qwen3-untied")
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("nan")
    model.save_pretrained(folder)


def killed(folder: Path) -> str:
    try:
        run_ranks(killed_while_saving, 1, str(folder / "killed"), str(folder / "qwen3-untied"))
    except ProcessExitedException as error:
        return str(error.signal_name)
    return "not killed"


@pytest.mark.parametrize("case", ONE_RANK, ids=lambda case: case.name)
def test_packing_does_not_change_what_is_trained(case: Case, measured: Measured) -> None:
    check_training(case, measured.found["cases"][case.name], measured.references[case.name])


@pytest.mark.parametrize("how", ["float32", "bfloat16", "at once"])
def test_a_stopped_training_goes_on_bit_for_bit(how: str, measured: Measured) -> None:
    check_resumption(measured.found["resumed"][how])


def test_a_training_killed_while_it_saves_resumes_from_the_checkpoint_before(
    measured: Measured,
) -> None:
    assert measured.kill == "SIGKILL"
    found = measured.found["killed"]
    assert not found["differing"], f"differ from the uninterrupted run: {found['differing'][:3]}"
    assert [line["step"] for line in found["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert found["left"] == ["step-000006"], "what the kill left behind is cleared away"


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ("truncated", "CheckpointError: .*distcp has [0-9]+ bytes instead of [0-9]+"),
        ("scribbled", "CheckpointError: .*step-000002 cannot be loaded"),
        ("incomplete", "CheckpointError: .*metadata is missing"),
        ("foreign", "CheckpointError: .*is not a checkpoint of a training"),
        ("seed", "CheckpointError: .*another training: its seed is 5, not 6"),
        ("model", "CheckpointError: .*step-000002 cannot be loaded"),
        ("warmup", "SettingsError: .*warmup_steps=6 must be fewer than the 6 steps"),
    ],
)
def test_what_cannot_be_resumed_from_is_refused_with_a_reason(
    spoiled: str, message: str, measured: Measured
) -> None:
    assert re.match(message, measured.found["refused"][spoiled]), measured.found["refused"][spoiled]


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_examples(
    measured: Measured,
) -> None:
    found = measured.found["not finite"]
    assert "step 1 has loss nan" in found["message"]
    names = json.loads(found["file"])["examples"]
    assert len(names) == 5
    assert set(names) <= {row["example_id"] for row in rows()}


def test_updates_that_are_not_finite_are_skipped_and_counted_when_asked(
    measured: Measured,
) -> None:
    found = measured.found["skipped"]
    counts = list(accumulate(found["poisoned"]))
    assert 2 <= counts[-1] < 6, "the test wants updates of both kinds"
    assert [line["skipped"] for line in found["metrics"]] == counts
    assert found["told"] == counts[-1], "the checkpoint tells it to the stage's summary"
    assert found["resumed"] == found["metrics"], "the count goes on where a training resumes"
    assert found["finite"], "a skipped update must leave the parameters alone"
    assert re.match("StageError.*update 2 to be skipped", found["refused"]), found["refused"]
    assert len(found["batches"]) == 2 * counts[-1], f"a file and a table: {found['batches']}"


def test_the_last_checkpoints_and_every_nth_are_kept(measured: Measured) -> None:
    assert measured.found["kept"] == [f"step-{step:06d}" for step in (2, 4, 5, 6)]


def test_a_checkpoint_written_late_holds_the_state_of_its_step(measured: Measured) -> None:
    assert not measured.found["late"], f"differ: {measured.found['late'][:3]}"


def test_a_checkpoint_that_cannot_be_written_is_named_and_the_one_before_kept(
    measured: Measured,
) -> None:
    found = measured.found["disk full"]
    assert re.match(
        "CheckpointError: .*step-000004 could not be written .*No space left", found["said"]
    ), found["said"]
    assert found["left"] == ["step-000002"]


def test_a_training_asked_to_stop_saves_the_step_it_is_in_and_goes_on(measured: Measured) -> None:
    check_stopped(measured.found["asked"])


def test_trainings_leave_no_model_behind_in_the_process(measured: Measured) -> None:
    assert measured.found["alive"] == 0


def test_scores_are_the_hugging_face_log_probs_whatever_the_packing(measured: Measured) -> None:
    check_scores(measured.found["scores"], count=7, seed=0)
