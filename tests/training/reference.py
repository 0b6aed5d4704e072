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
from tests.training.cases import Case
from tests.training.jobs import OPTIMIZER, WEIGHTS, job, rows, scored_sequences

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


def reference_scores(count: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor, Any]]:
    """Log-probs and entropies of every token but a sequence's first, and the spans wanted."""
    model = hugging_face("qwen3-untied")
    found = []
    with torch.no_grad():
        for ids, spans in scored_sequences(seed, count):
            logits = model(torch.tensor(ids)[None]).logits[0, :-1].double()
            log_probs = logits.log_softmax(-1)
            of_tokens = log_probs.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            found.append((of_tokens, -(log_probs.exp() * log_probs).sum(1), spans))
    return found


def check_training(case: Case, found: dict[str, Any], reference: Reference) -> None:
    """What a rank found in `case` is what plain torch computed."""
    lines = found["metrics"]
    assert [line["step"] for line in lines] == [1, 2, 3], "a line of metrics for each step"
    low = case.changes.get("dtype") == "bfloat16"
    for name, wanted in (
        ("loss", reference.losses),
        ("grad_norm", reference.grad_norms),
        ("learning_rate", reference.learning_rates),
    ):
        values = [line[name] for line in lines]
        limit = 2e-2 if low else 1e-5
        assert values == pytest.approx(wanted, rel=limit), f"{name} {values}, wanted {wanted}"
    errors = found["errors"]
    if low:
        return
    assert errors[""] < 1e-5, f"the update is off by {errors['']:.1e} of its norm in {case.name}"
    worst = max(errors, key=errors.__getitem__)
    # Norms' weights are near 1: a last bit of theirs is up to 2e-5 of such small updates.
    assert errors[worst] < 3e-5, f"{worst} is off by {errors[worst]:.1e} of its update"


def check_resumption(found: dict[str, Any]) -> None:
    """A training that was stopped after step 3 of 6 went on as if it had not been."""
    assert found["steps"] == [3, 4, 5, 6], f"resumed with steps {found['steps']}, not after step 2"
    different = found["differing"]
    assert not different, f"{len(different)} tensors differ bit for bit, first {different[:3]}"
    whole, broken = found["metrics"]
    assert broken == whole, "metrics of a resumed training differ from an uninterrupted one's"
    assert found["left"] == ["step-000006"], f"checkpoints left: {found['left']}"
    assert found["again"], "a finished training was run again"


def check_stopped(found: dict[str, Any]) -> None:
    """A training of 6 steps that was asked to stop in step 3 did so, and went on after it."""
    assert found["message"].startswith("75: "), f"said {found['message']!r}"
    assert "saved after step 3 of 6" in found["message"]
    assert found["saved"] == ["step-000003"]
    assert found["steps"] == [1, 2, 3, 0, 4, 5, 6], "each step once"
    assert found["final"].name == "step-000006"


def check_scores(scores_by_budget: dict[int, Any], count: int, seed: int) -> None:
    """Scores of `count` sequences made from `seed` are the Hugging Face model's, however packed."""
    wanted = reference_scores(count, seed)
    for budget, scores in scores_by_budget.items():
        assert len(scores) == count, f"{len(scores)} scores for {count} sequences"
        for got, (log_probs, entropies, spans) in zip(scores, wanted, strict=True):
            message = f"with a budget of {budget} tokens"
            sums = [float(log_probs[a - 1 : b - 1].sum()) for a, b in spans]
            assert got.sums == pytest.approx(sums, abs=2e-4), message
            tokens = torch.cat([log_probs[a - 1 : b - 1] for a, b in spans])
            assert got.log_probs == pytest.approx(tokens.numpy(), abs=3e-5), message
            if got.entropies is not None:
                tokens = torch.cat([entropies[a - 1 : b - 1] for a, b in spans])
                assert got.entropies == pytest.approx(tokens.numpy(), abs=3e-5), message
    assert any(found.entropies is not None for found in scores_by_budget[48])
