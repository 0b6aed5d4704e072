"""Qwen's real vocabulary of 151,643 byte-level tokens, as a fast tokenizer and as tiktoken."""

from __future__ import annotations

import base64
from importlib.util import find_spec
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from megatron_vr.problems.markers import byte_alphabet

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Qwen3 has tokens that are added but not special.
ADDED = ("<think>", "</think>")


def ranks() -> dict[bytes, int]:
    """Token bytes → id, as the dashscope package ships them."""
    package = find_spec("dashscope")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "resources" / "qwen.tiktoken"
    lines = (line.split() for line in file.read_bytes().splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def reference_encoding(known: dict[bytes, int]) -> tiktoken.Encoding:
    """Another implementation of the same tokenizer."""
    extra = {name: len(known) + i for i, name in enumerate((*SPECIAL, *ADDED))}
    return tiktoken.Encoding("qwen", pat_str=SPLIT, mergeable_ranks=known, special_tokens=extra)


def qwen_tokenizer(known: dict[bytes, int]) -> PreTrainedTokenizerFast:
    """The vocabulary with Qwen's splitting, normalisation and (some of) its added tokens."""
    letters = byte_alphabet()
    text = {token: "".join(letters[byte] for byte in token) for token in known}
    # tiktoken joins any two neighbours whose concatenation is a token, lowest rank first.
    merges = [
        (text[token[:cut]], text[token[cut:]])
        for token in known
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
    backend = Tokenizer(BPE({text[token]: rank for token, rank in known.items()}, merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    backend.add_tokens([AddedToken(name, normalized=False) for name in ADDED])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
