"""One process that trains, is killed, resumes, refuses and scores, against plain torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from tests.parallel.launch import run_ranks
from tests.training.jobs import rows
from tests.training.ranks import ONE_RANK, Case, killed_while_saving, one_rank
from tests.training.reference import (
    Reference,
    check_resumption,
    check_scores,
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
    kill = killed(folder)
    (found,) = run_ranks(one_rank, 1, str(folder))
    return Measured(references, found, kill)


def killed(folder: Path) -> str:
    try:
        run_ranks(killed_while_saving, 1, str(folder / "killed"), str(folder / "qwen3-untied"))
    except ProcessExitedException as error:
        return str(error.signal_name)
    return "not killed"


@pytest.mark.parametrize("case", ONE_RANK, ids=lambda case: case.name)
def test_packing_does_not_change_what_is_trained(case: Case, measured: Measured) -> None:
    check_training(case, measured.found["cases"][case.name], measured.references[case.name])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_training_goes_on_bit_for_bit(dtype: str, measured: Measured) -> None:
    check_resumption(measured.found["resumed"][dtype])


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


def test_trainings_leave_no_model_behind_in_the_process(measured: Measured) -> None:
    assert measured.found["alive"] == 0


def test_scores_are_the_hugging_face_log_probs_whatever_the_packing(measured: Measured) -> None:
    check_scores(measured.found["scores"], count=7, seed=0)
