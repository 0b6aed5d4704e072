"""The same trainings and scores in plain torch: one process, one Hugging Face model, no packing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.reference import label_log_probs, tiny_model
from tests.training.jobs import OPTIMIZER, WEIGHTS, job, rows, scored_sequences
from tests.training.ranks import Case

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


def reference_trainings(cases: Sequence[Case], folder: Path) -> dict[str, Reference]:
    """Every case's reference; its trained model is saved in `folder / "references"`."""
    for name in sorted({case.model for case in cases}):
        hugging_face(name).save_pretrained(folder / name)
    return {
        case.name: reference_training(case, folder, folder / "references" / case.name)
        for case in cases
    }


def reference_scores(count: int, seed: int) -> list[tuple[float, ...]]:
    model = hugging_face("qwen3-untied")
    found = []
    with torch.no_grad():
        for ids, spans in scored_sequences(seed, count):
            log_probs = label_log_probs(model, torch.tensor(ids)).double()
            found.append(tuple(float(log_probs[a - 1 : b - 1].sum()) for a, b in spans))
    return found


def check_training(case: Case, found: dict[str, Any], reference: Reference) -> None:
    """What a rank found in `case` is what plain torch computed."""
    lines = found["metrics"]
    assert [line["step"] for line in lines] == [1, 2, 3], "a line of metrics for each step"
    for name, wanted in (
        ("loss", reference.losses),
        ("grad_norm", reference.grad_norms),
        ("learning_rate", reference.learning_rates),
    ):
        values = [line[name] for line in lines]
        assert values == pytest.approx(wanted, rel=1e-5), f"{name} {values}, wanted {wanted}"
    errors = found["errors"]
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] < 3e-4, (
        f"{worst} is off by {errors[worst]:.1e} of the distance it was to move in {case.name}"
    )


def check_resumption(found: dict[str, Any]) -> None:
    """A training that was stopped after step 3 of 6 went on as if it had not been."""
    assert found["steps"] == [3, 4, 5, 6], f"resumed with steps {found['steps']}, not after step 2"
    different = found["differing"]
    assert not different, f"{len(different)} tensors differ bit for bit, first {different[:3]}"
    whole, broken = found["metrics"]
    assert broken == whole, "metrics of a resumed training differ from an uninterrupted one's"
    assert found["left"] == ["step-000006"], f"checkpoints left: {found['left']}"
    assert found["again"], "a finished training was run again"


def check_scores(sums_by_budget: dict[int, Any], count: int, seed: int) -> None:
    """Sums of `count` sequences made from `seed` are the Hugging Face model's, however packed."""
    wanted = reference_scores(count, seed)
    for budget, sums in sums_by_budget.items():
        assert len(sums) == count, f"{len(sums)} sums for {count} sequences"
        for got, expected in zip(sums, wanted, strict=True):
            message = f"a budget of {budget} tokens gives {got}, wanted {expected}"
            assert got == pytest.approx(expected, abs=2e-4), message
