"""A small Hugging Face folder as a user has it: weights, a byte tokenizer and files beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.models.reference import tiny_model

TEXTS = (
    {"text": "Seven times eight is fifty-six, so the answer is 56."},
    {"question": "What is the capital of France?"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]},
    {"text": "def add(a, b):\n    return a + b"},
)
TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Odd spacing and a pair that Transformers would not save: only a copy has the same bytes.
GENERATION = '{"eos_token_id": [0, 5],  "do_sample": false, "top_p": 0.8}\n'


def byte_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per byte, 1 to 256, and `<eos>`, 0."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({"<eos>": 0} | {c: i for i, c in enumerate(alphabet, 1)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def write_source(folder: Path, family: str, tied: bool, dtype: torch.dtype, **changes: Any) -> Path:
    """A model's folder as it is on the hub: an old form of config.json, a tied copy stored too."""
    model = tiny_model(family, tied, vocab_size=272, **({"num_hidden_layers": 2} | changes))
    model.to(dtype).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"torch_dtype": config.pop("dtype"), "note_of_the_author": {"run": 7}}
    path.write_text(json.dumps(config))
    if tied:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "generation_config.json").write_text(GENERATION)
    (folder / "LICENSE").write_text("Do what you like.\n")
    return folder


def write_texts(path: Path, rows: Any = TEXTS) -> Path:
    """The rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def text_ids() -> list[list[int]]:
    """TEXTS as the model of a folder with TEMPLATE sees them, written out by hand."""
    asked = "[user]What is the capital of France?<eos>[assistant]"
    chat = "[user]Hi<eos>[assistant]Hello.<eos>"
    tokenizer = byte_tokenizer()
    return [
        tokenizer(text)["input_ids"] for text in (TEXTS[0]["text"], asked, chat, TEXTS[3]["text"])
    ]


def stock_model(source: Path, dtype: torch.dtype) -> Any:
    """The unquantised model by Transformers alone."""
    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()
