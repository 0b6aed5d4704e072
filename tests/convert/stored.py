"""Small Hugging Face folders as users have them, and what of them must survive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.models.reference import tiny_model

COMPANIONS = {
    "tokenizer.json": "{}",
    "generation_config.json": '{"eos_token_id": 3}',
    "chat_template.jinja": "{{ messages }}",
    "LICENSE": "free",
}
LEFT = {
    "README.md": "the base's own card",
    "modeling_x.py": "raise SystemExit",
    "optimizer.pt": "",
    ".gitattributes": "",
}


def write_folder(
    folder: Path, family: str = "qwen3", tied: bool = False, *, shards: str = "5GB", **changes: Any
) -> Path:
    """A random model of two layers with the files of a release around it."""
    options = {"num_hidden_layers": 2} | changes
    dtype = options.pop("dtype", torch.float32)
    tiny_model(family, tied, **options).to(dtype).save_pretrained(folder, max_shard_size=shards)
    for name, content in (COMPANIONS | LEFT).items():
        (folder / name).write_text(content)
    return folder


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors, read by safetensors itself."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found


def assert_same_bits(expected: Path, found: Path) -> None:
    """The two folders hold the same tensors, bit for bit."""
    first, second = tensors_of(expected), tensors_of(found)
    assert second.keys() == first.keys()
    for name, tensor in first.items():
        assert second[name].dtype == tensor.dtype, name
        bits = torch.int32 if tensor.dtype == torch.float32 else torch.int16
        assert torch.equal(second[name].view(bits), tensor.view(bits)), f"{name} differs"


def assert_same_companions(expected: Path, found: Path) -> None:
    """Every side file arrived byte for byte, and nothing that is no part of a release."""
    for name in ("config.json", *COMPANIONS):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), f"{name} differs"
    for name in LEFT:
        assert not (found / name).exists(), f"{name} was carried over"
