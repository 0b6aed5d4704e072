"""The rival computes what it says: the same batch, as packs or padded, and an honest optimizer."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from tools.bench.on_gpu.batches import BUDGET, places_of, random_table, targets_of
from tools.bench.on_gpu.hugging_face import (
    IGNORED,
    Attention,
    Batch,
    Float32Masters,
    Rival,
    padded,
)
from tools.bench.on_gpu.place import Place
from tools.bench.on_gpu.rival import batches_of, theirs
from tools.bench.on_gpu.shapes import hf_fields, whole_shape

PLACE = Place(True, 0.0, Path())


def test_packs_and_padded_batches_have_the_loss_of_the_sequences_one_by_one() -> None:
    architecture = whole_shape("8b", PLACE)
    table = random_table(places_of("traces", PLACE), architecture.vocab_size)
    rival = Rival(architecture, PLACE)
    rival.model.float()
    # One by one, by Transformers' own attention and a loss written out.
    reference = AutoModelForCausalLM.from_config(
        Qwen3Config(**hf_fields(architecture)), attn_implementation="eager"
    )
    reference.load_state_dict(rival.model.state_dict())
    total = 0.0
    with torch.no_grad():
        for row in range(len(table.places)):
            first, last = table.offsets[row], table.offsets[row + 1]
            ids = torch.from_numpy(table.tokens[first:last].astype("int64"))
            log_probs = reference(ids[None, :-1]).logits[0].float().log_softmax(-1)
            each = log_probs.gather(1, ids[1:, None])[:, 0]
            total -= float(each[torch.from_numpy(table.is_target[first + 1 : last])].sum())
    wanted = total / sum(targets_of(table))
    for kind in ("packed", "flash"):
        rival.use(masters=False)
        for group in rival.optimizer.param_groups:
            group["lr"] = 0.0
        found = rival.step(batches_of(table, kind, PLACE), kind)  # type: ignore[arg-type]
        assert found == pytest.approx(wanted, rel=1e-5)


def test_every_target_is_in_a_batch_once() -> None:
    table = random_table(places_of("traces", PLACE), 512)
    for kind in ("packed", "flash"):
        batches = batches_of(table, kind, PLACE)  # type: ignore[arg-type]
        labels = torch.cat([batch.labels.flatten() for batch in batches])
        kept = labels[labels != IGNORED].sort().values
        assert torch.equal(
            kept, torch.from_numpy(table.tokens[table.is_target]).long().sort().values
        )
        assert all(batch.tokens.numel() <= 256 for batch in batches)


def test_a_padded_batch_has_each_sequence_at_the_left() -> None:
    table = random_table([3, 5], 512)
    batch = padded(table, [1, 0], "cpu")
    assert batch.tokens.tolist()[0] == table.tokens[4:9].tolist()
    assert batch.tokens.tolist()[1] == [*table.tokens[:3].tolist(), 0, 0]
    assert batch.labels[1].tolist() == [*table.tokens[1:4].tolist(), IGNORED, IGNORED]


def test_float32_main_weights_are_those_of_adamw_in_float32() -> None:
    torch.manual_seed(0)
    start = torch.nn.Linear(8, 8).bfloat16()
    narrow, wide = copy.deepcopy(start), copy.deepcopy(start).float()
    inner = torch.optim.AdamW(wide.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.0)
    masters = Float32Masters(list(narrow.parameters()))
    for _ in range(200):
        for one, other in zip(narrow.parameters(), wide.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.float()
        masters.step()
        inner.step()
    for one, other, first in zip(
        narrow.parameters(), wide.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(one.float(), other, rtol=2**-8, atol=1e-6)
        # Steps this small would be lost in bfloat16 weights.
        assert not torch.equal(one, first)


@pytest.mark.parametrize("name", ["8192", "32768", "traces"])
def test_batches_fill_micro_batches_on_the_card(name: str) -> None:
    places = places_of(name, Place(False, 0.0, Path()))
    packs = 2 if name == "traces" else 1
    assert 0.7 * packs * BUDGET < sum(places) <= packs * BUDGET
    assert max(places) <= BUDGET


def test_an_attention_that_does_not_run_is_a_row_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    architecture = whole_shape("8b", PLACE)
    table = random_table(places_of("8192", PLACE), architecture.vocab_size)
    step = Rival.step

    def without_flash(rival: Rival, batches: list[Batch], attention: Attention) -> float:
        if attention == "flash":
            raise RuntimeError("No available kernel. Aborting execution.")
        return step(rival, batches, attention)

    monkeypatch.setattr(Rival, "step", without_flash)
    rows = {row.name: row.values for row in theirs("8192", architecture, table, PLACE)}
    assert rows["flash, bfloat16 AdamW"] == {
        "failed": "RuntimeError: No available kernel. Aborting execution."
    }
    assert rows["cuDNN, bfloat16 AdamW"]["seconds"] > 0
    assert rows["cuDNN, float32 main weights"]["seconds"] > 0


def test_memory_that_runs_out_ends_the_case(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = whole_shape("8b", PLACE)
    table = random_table(places_of("8192", PLACE), architecture.vocab_size)

    def too_large(rival: Rival, batches: list[Batch], attention: Attention) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Rival, "step", too_large)
    with pytest.raises(torch.OutOfMemoryError):
        list(theirs("8192", architecture, table, PLACE))
