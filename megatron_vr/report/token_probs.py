"""Log-probs of single tokens under an exported model, for the few traces that are shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.problems.codec import TextCodec

LARGEST_MODEL = 1 << 30  # bytes of weights; larger models are not loaded to draw a page
LONGEST_TRACE = 2048  # tokens
CHARACTER_BYTES = 4  # of the longest character in UTF-8


@dataclass(frozen=True)
class Continued:
    """A prompt and the tokens that follow it."""

    prompt_ids: Sequence[int]
    token_ids: Sequence[int]


def is_affordable(model: Path) -> bool:
    """Whether the Hugging Face folder is there and small enough to be run on a CPU at once."""
    sizes = [file.stat().st_size for file in model.glob("*.safetensors")]
    return bool(sizes) and sum(sizes) <= LARGEST_MODEL


def token_log_probs(model: Path, sequences: Sequence[Continued]) -> list[list[float]]:
    """log p(token_t | prompt, tokens before t) in nats of each sequence, in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    with _no_progress_bar():
        network = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, local_files_only=True
        )
    network.eval()
    found = []
    with torch.inference_mode():
        for sequence in sequences:
            ids = torch.tensor([[*sequence.prompt_ids, *sequence.token_ids]])
            first = len(sequence.prompt_ids)
            logits = network(ids, use_cache=False).logits[0, first - 1 : -1]
            chosen = logits.log_softmax(-1).gather(1, ids[0, first:, None])
            found.append(chosen[:, 0].tolist())
    return found


def pieces(codec: TextCodec, ids: Sequence[int]) -> Iterator[tuple[str, int]]:
    """The text of `ids` cut where tokens end and characters do: (text, number of tokens)."""
    between = b"" if codec.byte_level else b" "
    pending, count = b"", 0
    for position, token in enumerate(ids):
        pending += (between if position else b"") + codec.token_bytes[token]
        count += 1
        if not _cut_short(pending):
            yield pending.decode("utf-8", errors="replace"), count
            pending, count = b"", 0
    if count:
        yield pending.decode("utf-8", errors="replace"), count


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _cut_short(text: bytes) -> bool:
    """Whether `text` ends within a character that its next bytes could complete."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            error.reason == "unexpected end of data" and len(text) - error.start < CHARACTER_BYTES
        )
    return False
