"""What the shipped runs of 4B to 32B build on H100s, kept in this folder.

`python -m tests.algorithm.golden.resolved` writes it anew; read the difference before it is kept.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_vr.algorithm.resolved_run import Target, resolve_run
from megatron_vr.config.load import load_settings
from megatron_vr.models.parts import Parts

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
EXAMPLES = tuple(sorted((ROOT / "examples").glob("qwen*.yaml")))

# An H100 node with the versions that FP8 was written against.
H100 = Target(
    "NVIDIA H100 80GB HBM3",
    Parts(
        megatron="0.19.2",
        torch="2.11.0+cu130",
        transformer_engine="2.20.2",
        cuda="13.0",
        cudnn="9.19.0",
        capability=(9, 0),
    ),
)


def resolved(example: Path, *overrides: str) -> dict[str, Any]:
    """Of one example, as JSON has it."""
    found = resolve_run(load_settings(example, overrides), H100).as_json()
    loaded: dict[str, Any] = json.loads(json.dumps(found))
    return loaded


def golden(example: Path) -> Path:
    """Where it is kept."""
    return HERE / f"{example.stem}.json"


def kept(example: Path) -> dict[str, Any]:
    """What is kept."""
    content: dict[str, Any] = json.loads(golden(example).read_text(encoding="utf-8"))
    return content


if __name__ == "__main__":
    for path in EXAMPLES:
        golden(path).write_text(json.dumps(resolved(path), indent=1) + "\n", encoding="utf-8")
