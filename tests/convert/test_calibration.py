"""Calibration texts are tokenised as the model sees them; a bad one is named by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_vr.convert.calibration import (
    PROMPTS,
    Text,
    encode,
    open_tokenizer,
    own_continuations,
    read_texts,
)
from megatron_vr.errors import DataError, SettingsError
from tests.convert.small_release import byte_tokenizer, text_ids, write_texts
from tests.models.reference import tiny_model


def test_texts_questions_and_chats_are_tokenised_as_the_model_sees_them(tmp_path: Path) -> None:
    texts = read_texts(write_texts(tmp_path / "texts.jsonl"), samples=10, seed=0)
    assert [list(ids) for ids in encode(texts, byte_tokenizer(), 1000, 272)] == text_ids()
    assert [list(ids) for ids in encode(texts, byte_tokenizer(), 7, 272)] == [
        ids[:7] for ids in text_ids()
    ]


def test_without_a_chat_template_a_question_stands_as_it_is() -> None:
    plain = byte_tokenizer(template=None)
    (ids,) = encode([Text("here", "question", "Why?")], plain, 1000, 272)
    assert list(ids) == plain("Why?")["input_ids"]


def test_at_most_the_asked_number_is_drawn_by_the_seed_in_file_order(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "texts.jsonl", [{"text": f"{i:03}"} for i in range(50)])
    draws = [[text.content for text in read_texts(path, 10, seed)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] == sorted(draws[0])
    assert len(set(draws[0])) == 10
    assert draws[0] != draws[2], "the seed changes nothing"
    assert len(read_texts(path, 50, 0)) == 50


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut', "not valid JSON"),
        ('{"prompt": "a"}', "no object with text, question or messages"),
        ('["text"]', "no object with"),
        ('{"text": 3}', "text must be a string"),
        ('{"question": ""}', "question must be a string, and not empty"),
        ('{"messages": []}', "messages must be a list of objects with role and content"),
        ('{"messages": [{"role": "user"}]}', "messages must be a list"),
    ],
)
def test_a_bad_line_is_named(line: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "fine"}}\n\n{line}\n')
    with pytest.raises(DataError, match=rf"texts\.jsonl:3\b.*{problem}"):
        read_texts(path, 10, 0)


def test_a_file_without_texts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_texts(tmp_path / "absent.jsonl", 10, 0)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="at least one"):
        read_texts(tmp_path / "empty.jsonl", 10, 0)


@pytest.mark.parametrize(
    ("text", "vocabulary", "problem"),
    [
        (Text("f:2", "messages", [{"role": "user", "content": "x"}]), 272, "no chat template"),
        (Text("f:2", "text", "z"), 20, "of a vocabulary of 20"),
    ],
)
def test_a_text_that_the_model_cannot_read_is_named(
    text: Text, vocabulary: int, problem: str
) -> None:
    with pytest.raises(DataError, match=f"f:2.*{problem}"):
        encode([text], byte_tokenizer(template=None), 100, vocabulary)


def test_words_that_a_tokenizer_does_not_know_are_a_named_error() -> None:
    from megatron_vr.problems.toy_tokenizer import make_tokenizer

    with pytest.raises(DataError, match=r"f:1 cannot be tokenised.*this tokenizer knows"):
        encode([Text("f:1", "text", "Hello")], make_tokenizer(), 100, 200)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    """Transformers would make up an empty one for a folder of this model."""
    tiny_model("qwen2", False).config.save_pretrained(tmp_path)
    with pytest.raises(SettingsError, match="has no tokenizer"):
        open_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("qwen3", False, vocab_size=272, num_hidden_layers=1)


def test_continuations_begin_with_prompts_and_are_the_models_own(model: Any) -> None:
    tokenizer = byte_tokenizer()

    def sample(seed: int) -> list[tuple[int, ...]]:
        return own_continuations(model, tokenizer, limit=100, samples=10, seed=seed)

    first = sample(0)
    asked = [tokenizer(f"[user]{prompt}<eos>[assistant]")["input_ids"] for prompt in PROMPTS]
    for i, ids in enumerate(first):
        prompt = asked[i % len(PROMPTS)]
        assert list(ids[: len(prompt)]) == prompt
        assert len(prompt) < len(ids) <= 100
        assert 0 not in ids[len(prompt) : -1], "the model went on after its stop token"
    assert first == sample(0)
    assert first != sample(1), "the seed changes nothing"
    assert first[0] != first[8], "the same prompt has the same continuation twice"


def test_sampled_tokens_follow_the_models_distribution() -> None:
    """A head that knows one token continues with nothing else."""
    certain = tiny_model("qwen3", False, vocab_size=272, num_hidden_layers=1)
    with torch.no_grad():
        certain.lm_head.weight.zero_()
        certain.model.norm.weight.zero_()
        certain.lm_head.bias = torch.nn.Parameter(
            torch.zeros(272).index_fill(0, torch.tensor(77), 50)
        )
    (ids,) = own_continuations(certain, byte_tokenizer(None), limit=100, samples=1, seed=0)
    assert set(ids[len(PROMPTS[0]) :]) == {77}


def test_a_limit_within_the_prompts_is_refused(model: Any) -> None:
    with pytest.raises(SettingsError, match="raise max_tokens"):
        own_continuations(model, byte_tokenizer(), limit=20, samples=3, seed=0)
