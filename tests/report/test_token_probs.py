"""Token log-probs and token texts of the traces that a page shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_vr.problems.codec import TextCodec
from megatron_vr.problems.tokenizer import load_tokenizer
from megatron_vr.report.token_probs import Continued, is_affordable, pieces, token_log_probs


def test_log_probs_are_those_of_one_token_at_a_time(models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    folder = models["export-policy"]
    sequences = [Continued([33, 8, 9, 35], [10, 11, 12]), Continued([33, 35], [20])]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for sequence, found in zip(sequences, token_log_probs(folder, sequences), strict=True):
        seen = list(sequence.prompt_ids)
        expected = []
        for token in sequence.token_ids:
            with torch.no_grad():
                logits = network(torch.tensor([seen])).logits[0, -1]
            expected.append(float(logits.log_softmax(-1)[token]))
            seen.append(token)
        assert found == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_weights_is_not_affordable(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    assert is_affordable(models["export-policy"])
    assert not is_affordable(tmp_path)


def test_words_are_parted_by_spaces(models: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(models["export-policy"])
    codec = TextCodec.of(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["c3", "c4", "</think>"])
    assert list(pieces(codec, ids)) == [("c3", 1), (" c4", 1), (" </think>", 1)]


def test_a_character_of_several_tokens_stays_whole() -> None:
    euro = "€".encode()
    spelled = (b"a", euro[:1], euro[1:2], euro[2:], b"b", b"\xff")
    codec = TextCodec(plain=None, added={}, token_bytes=spelled, byte_level=True)  # type: ignore[arg-type]
    found = list(pieces(codec, [0, 1, 2, 3, 4, 5, 1]))
    assert found == [("a", 1), ("€", 3), ("b", 1), ("\ufffd", 1), ("\ufffd", 1)]
