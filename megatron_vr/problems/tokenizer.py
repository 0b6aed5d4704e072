"""Tokenizers as folders on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_vr.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a model's folder.

    Raises CheckpointError where there is none, or only one without a fast implementation.
    """
    from transformers import AutoTokenizer

    if not Path(folder).is_dir():
        raise CheckpointError(f"there is no folder {folder} to load a tokenizer from")
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} holds no tokenizer that can be loaded ({error}); "
            "copy tokenizer.json and tokenizer_config.json of the base model into it"
        ) from error
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{folder}: {type(tokenizer).__name__} has no fast implementation; "
            "save the tokenizer with a tokenizer.json"
        )
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokenizer so that transformers 4 and 5, and servers built on them, load it.

    transformers 5 names the class of a generic tokenizer in a way that 4 does not know.
    """
    tokenizer.save_pretrained(str(folder))
    config = Path(folder) / "tokenizer_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    if values.get("tokenizer_class") == "TokenizersBackend":
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
