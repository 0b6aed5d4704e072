from __future__ import annotations

from random import Random

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from megatron_vr.errors import SettingsError
from megatron_vr.problems.markers import Marker, token_bytes
from megatron_vr.problems.prompts import PromptFormat
from megatron_vr.problems.toy_tokenizer import make_tokenizer

CLOSE = "<|end_of_thought|>"
MARKERS = (CLOSE, f"{CLOSE}\n\n", "</think>", "é🙂|>", "aab")
EMOJI = "🙂".encode()

# What may stand beside a marker: beginnings and ends of it, text that joins its first or last
# token, halves of characters, added tokens.
FRAGMENTS = [
    *(piece.encode() for piece in ("<", "\n\n<|", ".", "x", " <", ").", "\n", "\n\n", "\r\n", ">")),
    *(
        piece.encode()
        for piece in ("|>\n\n\n", "<|end_of_thought|", "_thought|>", "<<|end_of", "</")
    ),
    *(marker.encode() for marker in MARKERS),
    *(piece.encode() for piece in ("<|im_end|>", "aaab", "aa", "e\u0301", "数学", "\ufffd")),
    EMOJI,
    EMOJI[:2],
    EMOJI[2:],
]
hostile = st.lists(st.sampled_from(FRAGMENTS), max_size=8).map(b"".join)


@pytest.fixture(scope="session")
def known(qwen: PreTrainedTokenizerFast) -> tuple[bytes, ...]:
    return token_bytes(qwen)


@pytest.fixture(scope="session")
def ids_of(known: tuple[bytes, ...]) -> dict[bytes, int]:
    return {piece: token for token, piece in enumerate(known)}


def tokenised(seed: int, text: bytes, ids_of: dict[bytes, int]) -> list[int]:
    """Any tokens that spell `text`, as a sampler may produce them."""
    random = Random(seed)
    ids = []
    while text:
        longest = min(len(text), 24)
        fitting = [size for size in range(1, longest + 1) if text[:size] in ids_of]
        size = random.choice(fitting)
        ids.append(ids_of[text[:size]])
        text = text[size:]
    return ids


def end_by_search(marker: str, ids: list[int], encoding: tiktoken.Encoding) -> int | None:
    """The shortest beginning of `ids` whose bytes contain the marker."""
    for count in range(len(ids) + 1):
        if marker.encode() in encoding.decode_bytes(ids[:count]):
            return count
    return None


def end_by_sampling(marker: Marker, ids: list[int]) -> int | None:
    """Where a sampler stops that looks at `max_tail` tokens after each one."""
    for count in range(1, len(ids) + 1):
        if marker.completes(ids[max(0, count - marker.max_tail) : count]):
            return count
    return None


def test_bytes_of_every_qwen_token_are_those_of_another_tokenizer(
    known: tuple[bytes, ...], encoding: tiktoken.Encoding
) -> None:
    assert len(known) == encoding.n_vocab
    assert list(known) == [encoding.decode_single_token_bytes(i) for i in range(encoding.n_vocab)]


@settings(max_examples=400, deadline=None)
@given(seed=st.integers(0, 2**32), text=hostile, marker=st.sampled_from(MARKERS))
def test_a_trace_ends_with_the_first_token_that_completes_the_marker_however_it_is_split(
    seed: int,
    text: bytes,
    marker: str,
    known: tuple[bytes, ...],
    ids_of: dict[bytes, int],
    encoding: tiktoken.Encoding,
) -> None:
    ids = tokenised(seed, text, ids_of)
    rule = Marker(marker, known)
    expected = end_by_search(marker, ids, encoding)
    assert rule.first_end(ids) == expected
    assert end_by_sampling(rule, ids) == expected
    if expected is not None:
        assert marker in encoding.decode(ids[:expected])
        assert marker not in encoding.decode(ids[: expected - 1])


@settings(max_examples=150, deadline=None)
@given(before=hostile, after=hostile)
def test_ordinary_tokenisation_is_cut_at_the_same_place_by_sampler_and_batch(
    before: bytes, after: bytes, known: tuple[bytes, ...], encoding: tiktoken.Encoding
) -> None:
    text = before.decode(errors="ignore") + CLOSE + after.decode(errors="ignore")
    ids = encoding.encode_ordinary(text)
    rule = Marker(CLOSE, known)
    assert rule.first_end(ids) == end_by_sampling(rule, ids) == end_by_search(CLOSE, ids, encoding)


def test_bytes_after_the_marker_in_its_last_token_belong_to_the_trace(
    known: tuple[bytes, ...], encoding: tiktoken.Encoding
) -> None:
    ids = encoding.encode_ordinary(f"so x.{CLOSE}\n\n<|begin_of_solution|>")
    cut = Marker(CLOSE, known).first_end(ids)
    assert encoding.decode(ids[:cut]) == f"so x.{CLOSE}\n\n", "`>` and the blank line are one token"
    assert encoding.decode(ids[cut:]) == "<|begin_of_solution|>"


def test_text_before_the_marker_in_its_first_token_belongs_to_the_trace(
    known: tuple[bytes, ...], ids_of: dict[bytes, int], encoding: tiktoken.Encoding
) -> None:
    tail = encoding.encode_ordinary("|end_of_thought|>")
    ids = [ids_of[b"x"], ids_of[b".<"], *tail]
    assert Marker(CLOSE, known).first_end(ids) == len(ids)
    assert Marker(CLOSE, known).completes(ids)


def test_a_marker_is_not_joined_across_an_id_without_text(
    known: tuple[bytes, ...], ids_of: dict[bytes, int]
) -> None:
    first, last = (ids_of[piece] for piece in (b"a", b"ab"))
    rule = Marker("aab", known)
    padding = len(known) + 200  # a row of the embedding that the tokenizer does not use
    assert rule.first_end([first, padding, last]) is None
    assert not rule.completes([first, padding, last])
    assert rule.first_end([padding, first, last, first]) == 3


def test_a_marker_completed_before_the_last_token_is_not_completed_by_it(
    known: tuple[bytes, ...], encoding: tiktoken.Encoding
) -> None:
    ids = encoding.encode_ordinary(f"{CLOSE}abc")
    rule = Marker(CLOSE, known)
    assert [rule.completes(ids[: i + 1]) for i in range(len(ids))].count(True) == 1
    assert not rule.completes([])


def test_the_cut_of_reference_ids_is_the_end_of_the_trace(qwen_format: PromptFormat) -> None:
    for z in ("", "a", "a.", "x<", "x<|", "🙂", "a\n\n", "1 < 2\n", "<|end_of_thought|"):
        trace, answer = qwen_format.trace_ids(z), qwen_format.answer_ids("y")
        assert qwen_format.split([*trace, *answer]) == (trace, answer)
        assert end_by_sampling(qwen_format.trace_end, trace) == len(trace)


def test_a_word_level_marker_is_its_own_token() -> None:
    tokenizer = make_tokenizer()
    rule = Marker("</think>", token_bytes(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["c3", "c4", "</think>", "D", "</think>"])
    assert rule.first_end(ids) == end_by_sampling(rule, ids) == 3
    assert rule.first_end(ids[:2]) is None


def test_a_tokenizer_of_another_kind_is_refused() -> None:
    backend = Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(SettingsError, match=r"Unigram.*byte-level BPE"):
        token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_an_empty_marker_is_refused(known: tuple[bytes, ...]) -> None:
    with pytest.raises(SettingsError, match=r"trace\.close"):
        Marker("", known)
