"""A model folder to push, and this process as a client of the stand-in hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_vr.convert.hub import push_folder
from tests.convert.hub_server import TOKEN, Hub

CARD = {"README.md": b"---\ntags: [x]\n---\n\n# Card\n"}
SHARDS = {"model-00001-of-00002.safetensors": "a", "model-00002-of-00002.safetensors": "b"}
SMALL = {
    "config.json": b'{"model_type": "qwen3"}',
    "tokenizer.model": bytes(range(256)),
    "chat_template.jinja": "{{ π }}\r\n".encode(),
    "LICENSE": b"free",
    "notes.md": b"carried over from the base",
    "additional_chat_templates/tool.jinja": b"{{ tools }}",
}


def connect(monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = TOKEN) -> None:
    """Make the hub's client of this process ready for a server of this machine.

    `token` is the only one it finds. It speaks plain HTTP, for which xet is off.
    """
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def write_folder(model: Path) -> Path:
    """A finished model of two shards in the folder `model`."""
    for name, content in SMALL.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(content)
    for file, tensor in SHARDS.items():
        save_file({tensor: torch.randn(50, 20)}, model / file)
    index = {"weight_map": {tensor: file for file, tensor in SHARDS.items()}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def push(hub: Hub, folder: Path, repo: str = "org/name", private: bool = True) -> str:
    return push_folder(
        folder, repo, private=private, extra=CARD, message="a model", endpoint=hub.address
    )


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def sent(hub: Hub) -> list[str]:
    """The requests that could change something."""
    return [request for request in hub.requests if not request.startswith("GET")]
