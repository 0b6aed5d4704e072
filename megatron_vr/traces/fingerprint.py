"""What a stage's result depends on: its settings and the stages before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fingerprint:
    """`content` is JSON: {"stage", "settings", "inputs": {name: digest of its fingerprint}}."""

    content: dict[str, Any]

    @property
    def digest(self) -> str:
        """A short hash of the content."""
        text = json.dumps(self.content, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_fingerprint(
    stage: str, settings: Mapping[str, Any], inputs: Mapping[str, Fingerprint]
) -> Fingerprint:
    """Fingerprint of `stage` under JSON `settings`, fed by `inputs`."""
    digests = {name: fingerprint.digest for name, fingerprint in inputs.items()}
    content = {"stage": stage, "settings": dict(settings), "inputs": digests}
    return Fingerprint(json.loads(json.dumps(content)))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, each value that differs: `settings.train.steps: 100 → 200`."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    changed = [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]
    return [f"{key}: {before.get(key, 'absent')} → {after.get(key, 'absent')}" for key in changed]


def _leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, f"{at}.{key}" if at else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{at}[{index}]")
    else:
        yield at, node
