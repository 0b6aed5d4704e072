"""What the tests measured, as one JSON file that is whole at any time."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from megatron_vr.traces.durable import write_durably

_DISTRIBUTIONS = (
    "torch",
    "transformer-engine",
    "transformer-engine-torch",
    "transformer-engine-cu13",
    "megatron-core",
    "transformers",
    "triton",
    "flash-attn",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
)


@dataclass
class Report:
    """Tests by name, in the order in which they began. Written anew after each."""

    file: Path
    rehearsal: bool
    began: float = field(default_factory=time.time)
    tests: dict[str, dict[str, Any]] = field(default_factory=dict)
    reason: str | None = None

    @cached_property
    def host(self) -> dict[str, Any]:
        """Asked once: a device that failed answers no more."""
        return host()

    def begins(self, name: str) -> None:
        """What a run that is cut off leaves of the test that was running."""
        self.tests[name] = {"outcome": "cut off"}
        self.write("cut off")

    def ends(self, name: str, outcome: str, seconds: float, said: str | None, found: Any) -> None:
        """A test's `outcome` (passed, rehearsed, failed, needs the GPU), the last line of what it
        `said` and what it `found`."""
        self.tests[name] = {"outcome": outcome, "seconds": round(seconds, 3), "said": said} | found
        self.write("cut off")

    def write(self, outcome: str) -> None:
        """All that is known so far; `outcome` is that of the whole run."""
        content = {
            "what": "tests/gpu",
            "shows": (
                "that the tests' programs run: plain layers on a CPU, nothing about a GPU"
                if self.rehearsal
                else "what a GPU computed"
            ),
            "outcome": outcome,
            "reason": self.reason,
            "began": datetime.fromtimestamp(self.began, timezone.utc).isoformat(),
            "seconds": round(time.time() - self.began, 1),
            "command": sys.argv,
            "host": self.host,
            "tests": self.tests,
        }
        write_durably(self.file, json.dumps(content, indent=1) + "\n")


def host() -> dict[str, Any]:
    """Versions, and the device where there is one."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found
