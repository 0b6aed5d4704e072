"""Trainings over one and two real processes against one Hugging Face model and torch's AdamW."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from tests.models.reference import label_log_probs, tiny_model
from tests.parallel.launch import run_ranks
from tests.training.jobs import OPTIMIZER, WEIGHTS, job, rows, scored_sequences
from tests.training.ranks import ONE_RANK, TWO_RANKS, Case, killed_while_saving, one_rank, two_ranks

STEPS = 3


@dataclass(frozen=True)
class Reference:
    """What plain torch made of a case's examples."""

    losses: list[float]
    grad_norms: list[float]
    learning_rates: list[float]


def reference_training(case: Case, folder: Path, save_to: Path) -> Reference:
    """Three AdamW updates of the Hugging Face model, one sequence at a time."""
    made = job(folder / case.model, folder, **({"steps": STEPS} | case.changes))
    model = hugging_face(case.model).train()
    counts = [len(row["token_ids"]) - row["target_start"] for row in rows()]
    used = [(w, n) for w, n in zip(WEIGHTS, counts, strict=True) if w > 0]
    normaliser = made.settings.batch_size * sum(w * n for w, n in used) / len(used)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    flat = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": OPTIMIZER.weight_decay},
            {"params": flat, "weight_decay": 0.0},
        ],
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.epsilon,
    )
    found = Reference([], [], [])
    for step in range(STEPS):
        total = torch.zeros(())
        for draw in made.plan().batch(step):
            row = rows()[draw.example]
            log_probs = label_log_probs(model, torch.tensor(row["token_ids"]))
            targets = log_probs[row["target_start"] - 1 :]
            total = total - row["weight"] * targets.sum() / normaliser
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        rate = expected_rate(step + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        found.losses.append(total.item())
        found.grad_norms.append(float(norm))
        found.learning_rates.append(rate)
    model.save_pretrained(save_to)
    return found


def expected_rate(update: int) -> float:
    """The rate of update 1..STEPS: a line up to the peak, then a cosine to its final fraction."""
    warmup, floor = OPTIMIZER.warmup_steps, OPTIMIZER.final_fraction
    if update <= warmup:
        return OPTIMIZER.learning_rate * update / warmup
    share = (update - warmup) / (STEPS - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * share))
    return OPTIMIZER.learning_rate * (floor + (1 - floor) * cosine)


def hugging_face(name: str) -> Any:
    family, tying = name.split("-")
    return tiny_model(family, tied=tying == "tied", max_position_embeddings=64)


@dataclass(frozen=True)
class Measured:
    """The references of all cases, and what the processes found."""

    references: dict[str, Reference]
    one: dict[str, Any]
    two: list[dict[str, Any]]
    kill: str

    def found(self, case: Case) -> list[dict[str, Any]]:
        """What each rank found in `case`."""
        ranks = [self.one] if case in ONE_RANK else self.two
        return [rank["cases"][case.name] for rank in ranks]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("training")
    for name in ("qwen3-untied", "qwen2-tied"):
        hugging_face(name).save_pretrained(folder / name)
    broken = hugging_face("qwen3-untied")
    with torch.no_grad():
        broken.lm_head.weight[rows()[0]["token_ids"][0]] = float("nan")
    broken.save_pretrained(folder / "not-a-number")
    references, folders = {}, {}
    for case in (*ONE_RANK, *TWO_RANKS):
        destination = folder / "references" / case.name
        references[case.name] = reference_training(case, folder, destination)
        folders[case.name] = str(destination)
    kill = killed(folder)
    (one,) = run_ranks(one_rank, 1, str(folder), folders)
    two = run_ranks(two_ranks, 2, str(folder), folders)
    return Measured(references, one, two, kill)


def killed(folder: Path) -> str:
    try:
        run_ranks(killed_while_saving, 1, str(folder / "killed"), str(folder / "qwen3-untied"))
    except ProcessExitedException as error:
        return str(error.signal_name)
    return "not killed"


@pytest.mark.parametrize("case", [*ONE_RANK, *TWO_RANKS], ids=lambda case: case.name)
class TestAgainstOneHuggingFaceProcess:
    """Neither packing nor the number or layout of ranks changes what is computed."""

    def test_loss_gradient_norm_and_learning_rate(self, case: Case, measured: Measured) -> None:
        reference = measured.references[case.name]
        for rank in measured.found(case):
            lines = rank["metrics"]
            assert [line["step"] for line in lines] == [1, 2, 3]
            for name, wanted in (
                ("loss", reference.losses),
                ("grad_norm", reference.grad_norms),
                ("learning_rate", reference.learning_rates),
            ):
                values = [line[name] for line in lines]
                assert values == pytest.approx(wanted, rel=1e-5), f"{name} of {case.name}"

    def test_parameters(self, case: Case, measured: Measured) -> None:
        for rank in measured.found(case):
            errors = rank["errors"]
            worst = max(errors, key=errors.__getitem__)
            assert errors[worst] < 3e-4, (
                f"{worst} is off by {errors[worst]:.1e} of the distance it was to move"
            )


RESUMED = ["one rank", "one rank, bfloat16", "dp2", "tp2", "pp2"]


def resumption(measured: Measured, name: str) -> dict[str, Any]:
    one = {"one rank": "resumed", "one rank, bfloat16": "resumed bfloat16"}
    found = measured.one[one[name]] if name in one else measured.two[0]["resumed"][name]
    return dict(found)


@pytest.mark.parametrize("name", RESUMED)
class TestResumption:
    """A training that was stopped goes on as if it had not been."""

    def test_it_begins_at_the_last_checkpoint(self, name: str, measured: Measured) -> None:
        assert resumption(measured, name)["steps"] == [3, 4, 5, 6]

    def test_it_ends_bit_for_bit_where_it_would_have(self, name: str, measured: Measured) -> None:
        differing = resumption(measured, name)["differing"]
        assert not differing, f"{len(differing)} tensors differ, first {differing[:3]}"

    def test_no_line_of_its_metrics_is_doubled_or_different(
        self, name: str, measured: Measured
    ) -> None:
        whole, broken = resumption(measured, name)["metrics"]
        assert [line["step"] for line in broken] == [1, 2, 3, 4, 5, 6]
        assert broken == whole

    def test_only_the_last_checkpoint_is_left(self, name: str, measured: Measured) -> None:
        assert resumption(measured, name)["left"] == ["step-000006"]

    def test_a_finished_training_is_not_run_again(self, name: str, measured: Measured) -> None:
        assert resumption(measured, name)["again"]


def test_a_training_killed_while_it_saves_resumes_from_the_checkpoint_before(
    measured: Measured,
) -> None:
    assert measured.kill == "SIGKILL"
    found = measured.one["killed"]
    assert not found["differing"], f"differ from the uninterrupted run: {found['differing'][:3]}"
    assert [line["step"] for line in found["metrics"]] == [1, 2, 3, 4, 5, 6]
    assert found["left"] == ["step-000006"], "what the kill left behind is cleared away"


def test_a_training_continues_in_another_layout(measured: Measured) -> None:
    whole, _ = measured.two[0]["resumed"]["dp2"]["metrics"]
    losses = [line["loss"] for line in whole]
    assert measured.two[0]["moved"] == pytest.approx(losses, rel=1e-5)


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
    import re

    assert re.match(message, measured.one["refused"][spoiled]), measured.one["refused"][spoiled]


def test_a_loss_that_is_not_finite_stops_the_training_and_names_the_examples(
    measured: Measured,
) -> None:
    found = measured.one["not finite"]
    assert "step 1 has loss nan" in found["message"]
    names = json.loads(found["file"])["examples"]
    assert len(names) == 5
    assert set(names) <= {row["example_id"] for row in rows()}


def test_trainings_leave_no_model_behind_in_the_process(measured: Measured) -> None:
    assert measured.one["alive"] == 0


def reference_scores(count: int, seed: int) -> list[tuple[float, ...]]:
    model = hugging_face("qwen3-untied")
    found = []
    with torch.no_grad():
        for ids, spans in scored_sequences(seed, count):
            log_probs = label_log_probs(model, torch.tensor(ids)).double()
            found.append(tuple(float(log_probs[a - 1 : b - 1].sum()) for a, b in spans))
    return found


@pytest.mark.parametrize(
    ("name", "layout_rank_counts"),
    [
        ("one rank", [(0, 7)]),
        ("dp2", [(0, 7), (1, 3)]),
        ("tp2", [(0, 7)] * 2),
        ("pp2", [(0, 7)] * 2),
    ],
)
def test_scores_are_the_hugging_face_log_probs_whatever_the_packing(
    name: str, layout_rank_counts: list[tuple[int, int]], measured: Measured
) -> None:
    ranks = [measured.one] if name == "one rank" else [rank["scores"] for rank in measured.two]
    for found, (seed, count) in zip(ranks, layout_rank_counts, strict=True):
        scores = found["scores"] if name == "one rank" else found[name]
        wanted = reference_scores(count, seed)
        for budget, sums in scores.items():
            assert len(sums) == count
            for got, expected in zip(sums, wanted, strict=True):
                assert got == pytest.approx(expected, abs=2e-4), f"budget of {budget} tokens"
