"""Where a trace ends, decided on token ids alone.

Rule: a trace ends with the first token whose bytes complete the closing marker's text. Bytes of
that token after the marker belong to the trace; everything after the token is the answer segment.
The sampler, π and q all use it, however the marker was split into tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

from megatron_vr.errors import SettingsError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Stands for an id without text, so that nothing is joined across it. Never part of UTF-8.
NO_TEXT = b"\xff"


@dataclass(frozen=True)
class Marker:
    """The closing marker of a trace. `token_bytes[id]` are the bytes of token `id`."""

    text: str
    token_bytes: tuple[bytes, ...] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.text:
            raise SettingsError("the closing marker of the trace is empty; set trace.close")

    @property
    def max_tail(self) -> int:
        """How many of the last tokens can hold the marker: each has at least one byte of it."""
        return len(self._bytes)

    def first_end(self, ids: Sequence[int]) -> int | None:
        """The number of tokens up to and including the first that completes the marker.

        None when `ids` do not contain the marker.
        """
        pieces = [self._token(token) for token in ids]
        at = b"".join(pieces).find(self._bytes)
        if at < 0:
            return None
        end = at + len(self._bytes)
        for count, piece in enumerate(pieces, start=1):
            end -= len(piece)
            if end <= 0:
                return count
        raise AssertionError("the marker ends within the joined tokens")

    def completes(self, tail_ids: Sequence[int]) -> bool:
        """Whether the last of `tail_ids` completes the marker.

        `tail_ids` are the last `max_tail` tokens, or all there are; more do no harm.
        """
        if not tail_ids:
            return False
        pieces = [self._token(token) for token in tail_ids[-self.max_tail :]]
        before = sum(map(len, pieces[:-1]))
        # A match that ends within the last piece begins at or after this byte.
        first = max(0, before + 1 - len(self._bytes))
        return b"".join(pieces).find(self._bytes, first) >= 0

    @cached_property
    def _bytes(self) -> bytes:
        return self.text.encode("utf-8")

    def _token(self, token: int) -> bytes:
        known = self.token_bytes[token] if 0 <= token < len(self.token_bytes) else b""
        return known or NO_TEXT


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> tuple[bytes, ...]:
    """The bytes each token id stands for; empty for ids that the tokenizer does not use.

    Byte-level BPE tokens are read through the GPT-2 byte alphabet; added tokens, tokens with
    characters outside it and those of word-level tokenizers are their own text. Raises
    SettingsError for other kinds of tokenizer.
    """
    vocabulary = tokenizer.get_vocab()
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    read = _read_letters if is_byte_level(tokenizer) else str.encode
    found = [b""] * (max(vocabulary.values()) + 1)
    for text, token in vocabulary.items():
        found[token] = text.encode() if text in added else read(text)
    return tuple(found)


def is_byte_level(tokenizer: PreTrainedTokenizerFast) -> bool:
    """True for byte-level BPE, False for a word-level tokenizer.

    Raises SettingsError for other kinds, whose tokens do not say which bytes they stand for.
    """
    backend = tokenizer.backend_tokenizer
    model = type(backend.model).__name__
    if model == "WordLevel":
        return False
    if model == "BPE" and "ByteLevel" in _kinds(backend.decoder):
        return True
    raise SettingsError(
        f"the tokenizer ({model}, decoder {_kinds(backend.decoder) or 'none'}) is neither "
        "byte-level BPE nor word-level, so the end of a trace cannot be found in its tokens; "
        "use a model with a byte-level BPE tokenizer"
    )


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + i) for i, byte in enumerate(hidden)
    }


@cache
def _byte_of() -> dict[str, int]:
    return {char: byte for byte, char in byte_alphabet().items()}


def _read_letters(text: str) -> bytes:
    byte_of = _byte_of()
    try:
        return bytes([byte_of[char] for char in text])
    except KeyError:
        return text.encode()


def _kinds(decoder: object) -> list[str]:
    """The types of a `tokenizers` decoder and of those inside it."""
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())  # type: ignore[attr-defined]
    return [state["type"], *(inner["type"] for inner in state.get("decoders", ()))]
