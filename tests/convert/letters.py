"""Conversions of a few letters, for processes that need not import torch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_vr.convert.units import Advance, Unit
from megatron_vr.errors import CheckpointError


@dataclass(frozen=True)
class Letters:
    """A conversion of four files of one letter each, that records who made what and may go wrong
    at one of them."""

    log: Path
    fault: str = ""
    at: str = "c"
    colour: str = "red"

    @property
    def units(self) -> list[Unit]:
        return [Unit(name, 10, ()) for name in "abcd"]

    def identity(self) -> dict[str, Any]:
        return {"conversion": "letters", "colour": self.colour}

    def make(self, unit: Unit, path: Path, advance: Advance) -> str:
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(unit.name)
        path.write_text(unit.name * 5)
        advance(5)
        if unit.name == self.at:
            if self.fault == "error":
                raise CheckpointError("the source is damaged")
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "interrupt":
                raise KeyboardInterrupt
        path.write_text(unit.name * 10)
        advance(5)
        return unit.name.upper()

    def finish(self, folder: Path, made: Mapping[str, Any]) -> None:
        (folder / "index").write_text("".join(made[unit.name] for unit in self.units))


@dataclass(frozen=True)
class Slow(Letters):
    """Files that take for ever; the log has the processes."""

    def make(self, unit: Unit, path: Path, advance: Advance) -> str:
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"{os.getpid()}\n")
        time.sleep(600)
        return ""
