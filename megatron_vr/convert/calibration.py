"""What static input scales are measured on: texts of a file, or the model's own continuations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_vr.errors import DataError, SettingsError

Ids = tuple[int, ...]

# Mathematics, reasoning, code, other languages, prose: what a released model is asked.
PROMPTS = (
    "Solve 3x + 7 = 2x - 5 and show every step.",
    "Which is larger, 2^100 or 3^60? Explain your reasoning.",
    "Anna is older than Ben, and Ben is older than Carl. Who is youngest?",
    "Write a Python function that merges two sorted lists.",
    "Explain what `SELECT name FROM users WHERE age > 30;` does.",
    "请举例说明什么是质数。",
    "Pourquoi le ciel est-il bleu ?",
    "Write a short story about a lighthouse keeper.",
)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_FIELDS = ("text", "question", "messages")
# Bounds the cache while the model continues prompts.
_ROWS, _POSITIONS = 32, 2**15


@dataclass(frozen=True)
class Text:
    """One text to be tokenised; `where` names it in errors.

    `kind` is text (a string, read as it stands), question (a string, asked by a user) or messages
    (a chat: role and content of each).
    """

    where: str
    kind: str
    content: Any


def read_texts(path: Path, samples: int, seed: int) -> list[Text]:
    """At most `samples` lines of a JSONL file, drawn with `seed`, in the order of the file.

    A line is an object with `text`, `question` or `messages` (the first of these it has). Raises
    DataError, with file and line, for a line that is not one.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"calibration file {path} cannot be read ({error}); give a JSONL file."
        ) from None
    texts = [
        _parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()
    ]
    if not texts:
        raise DataError(f"{path} holds no lines; give at least one calibration text.")
    if len(texts) <= samples:
        return texts
    return [texts[i] for i in sorted(random.Random(seed).sample(range(len(texts)), samples))]


def _parse(line: str, where: str) -> Text:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where} is not valid JSON: {error}; correct or remove it.") from None
    present = [name for name in _FIELDS if isinstance(row, dict) and name in row]
    if not present:
        raise DataError(f"{where} is no object with {', '.join(_FIELDS[:-1])} or {_FIELDS[-1]}.")
    kind, content = present[0], row[present[0]]
    if kind == "messages":
        well_formed = isinstance(content, list) and all(
            isinstance(message, dict) and {"role", "content"} <= set(message) for message in content
        )
        wanted = "a list of objects with role and content"
    else:
        well_formed, wanted = isinstance(content, str), "a string"
    if not well_formed or not content:
        raise DataError(f"{where}: {kind} must be {wanted}, and not empty; correct or remove it.")
    return Text(where, kind, content)


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model's folder; code in it is never run. SettingsError without one."""
    from transformers import AutoTokenizer

    # Transformers makes up an empty tokenizer for a model's folder that has none.
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise SettingsError(
            f"{folder} has no tokenizer, which calibration needs; copy tokenizer.json and "
            "tokenizer_config.json of the base model into it."
        )
    try:
        return AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise SettingsError(f"the tokenizer of {folder} does not load: {error}") from error


def encode(texts: Sequence[Text], tokenizer: Any, limit: int, vocab_size: int) -> list[Ids]:
    """Token ids of every text, its first `limit`.

    Chats and questions go through the tokenizer's chat template; without one a question stands as
    it is. Raises DataError, naming the text, for one that cannot be encoded for the model.
    """
    encoded = []
    for text in texts:
        try:
            ids = _encode_one(text, tokenizer)
        except DataError:
            raise
        except Exception as error:  # tokenizers and templates raise whatever they like
            raise DataError(
                f"{text.where} cannot be tokenised ({type(error).__name__}: {error}); give "
                "calibration texts that this tokenizer knows."
            ) from error
        if not ids or max(ids) >= vocab_size:
            problem = f"the id {max(ids)} of a vocabulary of {vocab_size}" if ids else "no token"
            raise DataError(f"{text.where} gives {problem}; is this the model's own tokenizer?")
        encoded.append(tuple(ids[:limit]))
    return encoded


def _encode_one(text: Text, tokenizer: Any) -> list[int]:
    if text.kind == "messages" and not tokenizer.chat_template:
        raise DataError(
            f"{text.where} holds messages, but the tokenizer has no chat template; give text."
        )
    if text.kind == "text" or not tokenizer.chat_template:
        return list(tokenizer(text.content)["input_ids"])
    asked = text.kind == "question"
    chat = [{"role": "user", "content": text.content}] if asked else text.content
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=asked)
    # The template writes special tokens itself.
    return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])


def own_continuations(
    model: Any, tokenizer: Any, *, limit: int, samples: int, seed: int
) -> list[Ids]:
    """`samples` prompts of PROMPTS in turn, each with what the model samples after it.

    At temperature 1, until a stop token or `limit` tokens in all. Input scales then cover the
    activations that the model meets on its own outputs. Raises SettingsError when `limit` leaves
    no room after a prompt, DataError when the tokenizer cannot encode the prompts.
    """
    from megatron_vr.rollout.batching import BatchLimits
    from megatron_vr.rollout.embedded import EmbeddedEngine
    from megatron_vr.rollout.engine import Request, Sampling
    from megatron_vr.rollout.seeds import seed_for

    texts = [Text(f"built-in prompt {i + 1}", "question", text) for i, text in enumerate(PROMPTS)]
    prompts = encode(texts[:samples], tokenizer, limit, model.config.vocab_size)
    room = limit - max(len(prompt) for prompt in prompts)
    if room < 1:
        raise SettingsError(
            f"{limit} tokens (max_tokens, or the model's context) end before the built-in prompts "
            "do; raise max_tokens or give a calibration file."
        )
    requests = [
        Request(str(i), prompts[i % len(prompts)], seed_for(seed, "calibration", i))
        for i in range(samples)
    ]
    engine = EmbeddedEngine(model, BatchLimits(rows=_ROWS, tokens=_POSITIONS))
    sampling = Sampling(
        temperature=1.0, max_new_tokens=room, stop_token_ids=_stop_ids(model, tokenizer)
    )
    with counted("calibration texts, sampled from the model", samples) as advance:
        completions = engine.generate(requests, sampling, advance)
    return [
        request.prompt_ids + completion.token_ids
        for request, completion in zip(requests, completions, strict=True)
    ]


def _stop_ids(model: Any, tokenizer: Any) -> Ids:
    found = model.generation_config.eos_token_id
    ids = {*found} if isinstance(found, list) else {found}
    return tuple(sorted({*ids, tokenizer.eos_token_id} - {None}))


@contextmanager
def counted(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar of `total` on standard error (one line where that is no terminal); yields advance."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.print(f"{label}: {total}", markup=False)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(label, total=total)
        yield lambda amount: progress.update(task, advance=amount)
