from __future__ import annotations

import pytest
import tiktoken
from qwen_vocabulary import qwen_tokenizer, ranks, reference_encoding
from transformers import PreTrainedTokenizerFast

from megatron_vr.problems.prompts import PromptFormat, load_format
from megatron_vr.problems.toy_tokenizer import make_tokenizer


@pytest.fixture(scope="session")
def qwen_ranks() -> dict[bytes, int]:
    return ranks()


@pytest.fixture(scope="session")
def qwen(qwen_ranks: dict[bytes, int]) -> PreTrainedTokenizerFast:
    return qwen_tokenizer(qwen_ranks)


@pytest.fixture(scope="session")
def encoding(qwen_ranks: dict[bytes, int]) -> tiktoken.Encoding:
    """An independent implementation of the same tokenizer."""
    return reference_encoding(qwen_ranks)


@pytest.fixture(scope="session")
def qwen_formats(qwen: PreTrainedTokenizerFast) -> dict[str, PromptFormat]:
    """By the name of the posterior's template."""
    return {name: load_format("qwen", qwen, name) for name in ("pa", "pb")}


@pytest.fixture(scope="session")
def qwen_format(qwen_formats: dict[str, PromptFormat]) -> PromptFormat:
    return qwen_formats["pa"]


@pytest.fixture(scope="session")
def toy_format() -> PromptFormat:
    return load_format("toy", make_tokenizer(), "posterior")
