"""Shapes of well-known bases, for decisions that are made before their weights are here.

Each file holds the fields of the model's `config.json` that shape it; `_name_or_path` is its id on
the hub.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

from megatron_vr.errors import CheckpointError
from megatron_vr.models.architecture import Architecture, parse_architecture, read_architecture


def known_architecture(model: str) -> Architecture:
    """The architecture of `model`, a folder or an id on the hub; nothing is fetched.

    Looked for in the folder, then among what Hugging Face has kept on this machine, then in the
    shapes shipped here. Raises CheckpointError where it is in none of them.
    """
    folder = Path(model)
    if folder.is_dir():
        return read_architecture(folder)
    cached = _cached(model)
    if cached is not None:
        return read_architecture(cached)
    shipped = _shipped()
    if model not in shipped:
        raise CheckpointError(
            f"model.path {model!r} is no folder here, the hub's cache does not hold it, and its "
            "shape is not among those known without it "
            f"({', '.join(sorted(shipped))}); give a folder with its config.json: "
            f"`hf download {model} config.json --local-dir FOLDER`, then model.path=FOLDER"
        )
    return parse_architecture(json.loads(shipped[model].read_text("utf-8")), model)


def shipped_models() -> tuple[str, ...]:
    """Ids of the models whose shapes are shipped."""
    return tuple(sorted(_shipped()))


def _shipped() -> dict[str, Path]:
    files = Path(str(resources.files(__package__))).glob("*.json")
    return {json.loads(file.read_text("utf-8"))["_name_or_path"]: file for file in files}


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        raise CheckpointError(
            f"model.path {model!r} is no folder here and no id of the hub, as in "
            "Qwen/Qwen2.5-7B-Instruct; correct it"
        ) from None
    return Path(found).parent if isinstance(found, str) else None
