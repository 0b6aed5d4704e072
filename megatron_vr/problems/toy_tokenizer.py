"""The word-level tokenizer of the toy task."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_vr.problems.toy import MOVES, cells_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<think>", "</think>", "<hint>", "</hint>")


def make_tokenizer(size: int = 5) -> PreTrainedTokenizerFast:
    """One token per move, cell of a `size` × `size` grid and letter S, G, W; then SPECIAL_TOKENS.

    Special tokens are not among the words, so no text can spell one. There is no unknown token:
    other words are errors.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = [*MOVES, "S", "G", "W", *cells_text(range(size**2))]
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
