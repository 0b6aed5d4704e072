"""Text to token ids and back, with data kept apart from special tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_vr.errors import DataError
from megatron_vr.problems.markers import is_byte_level, token_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Piece:
    """A stretch of text. In data, nothing is a special token."""

    text: str
    is_data: bool


@dataclass(frozen=True)
class TextCodec:
    """A tokenizer, taken apart.

    `plain` knows no added token at all, so it reads every text as text. `added` are the added
    tokens (special or not) by their content. `token_bytes` as in `markers`.
    """

    plain: Tokenizer
    added: Mapping[str, int]
    token_bytes: tuple[bytes, ...]
    byte_level: bool

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> TextCodec:
        """Raises SettingsError for a tokenizer that is neither byte-level BPE nor word-level."""
        from tokenizers import Tokenizer

        backend = tokenizer.backend_tokenizer
        byte_level = is_byte_level(tokenizer)
        plain = Tokenizer(backend.model)
        if backend.normalizer is not None:
            plain.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            plain.pre_tokenizer = backend.pre_tokenizer
        added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
        return cls(plain, added, token_bytes(tokenizer), byte_level)

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Added tokens in pieces that are not data become their ids.

        All text between two of them is one run and is tokenised together, data or not.
        Raises DataError for text outside a word-level vocabulary.
        """
        ids: list[int] = []
        run: list[str] = []
        for part in self._parts(pieces):
            if isinstance(part, str):
                run.append(part)
            else:
                ids += self._encode_text("".join(run))
                ids.append(part)
                run.clear()
        return ids + self._encode_text("".join(run))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, added tokens as their content; words are joined with spaces.

        Bytes that are not UTF-8 (half a character) become U+FFFD.
        """
        known = [self.token_bytes[i] for i in ids if 0 <= i < len(self.token_bytes)]
        joined = b"".join(known) if self.byte_level else b" ".join(known)
        return joined.decode("utf-8", errors="replace")

    def _parts(self, pieces: Iterable[Piece]) -> Iterator[str | int]:
        """Text, and the ids of added tokens."""
        longest_first = sorted(self.added, key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(map(re.escape, longest_first))})")
        for piece in pieces:
            if piece.is_data or not self.added:
                yield piece.text
                continue
            for part in pattern.split(piece.text):
                yield self.added.get(part, part)

    def _encode_text(self, text: str) -> list[int]:
        try:
            return list(self.plain.encode(text, add_special_tokens=False).ids)
        except Exception as error:  # `tokenizers` raises nothing more specific
            known = self.plain.get_vocab()
            unknown = sorted({word for word in text.split() if word not in known})
            raise DataError(
                f"the tokenizer cannot express {' '.join(unknown[:5]) or text!r} ({error}); "
                "use a tokenizer made for these texts"
            ) from None
