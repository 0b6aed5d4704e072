"""How long the tests may take, and that none runs twice."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Compiling fused kernels counts; a kernel that never ends must not take all the time there is.
SECONDS_OF_A_TEST = 120.0


@dataclass(frozen=True)
class Limits:
    """Of a run, on each of its processes alike.

    `began` is of time.monotonic(), `seconds` is None where there is no limit, and the folder
    `begun` has a file for each test that began.
    """

    began: float
    seconds: float | None
    begun: Path

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Limits:
        """What `plain` made of them."""
        return cls(plain["began"], plain["seconds"], Path(plain["begun"]))

    def plain(self) -> dict[str, Any]:
        """As another process can be given it."""
        return {"began": self.began, "seconds": self.seconds, "begun": str(self.begun)}

    def of_a_test(self) -> float:
        """Seconds that a test may take which begins now."""
        left = self._left()
        return SECONDS_OF_A_TEST if left is None or left <= 0 else min(SECONDS_OF_A_TEST, left)

    def fault(self, name: str) -> str | None:
        """Why the test of this `name` must not run, in a sentence; notes that it began."""
        left = self._left()
        if left is not None and left <= 0:
            return f"not run: --gpu-seconds {self.seconds:g} are over"
        # pytest-xdist gives another process what was left of a file's tests when one ended, the
        # test that ended it included.
        try:
            (self.begun / name.replace("/", "_")).touch(exist_ok=False)
        except FileExistsError:
            return "not run again: the process in which it ran before ended"
        return None

    def _left(self) -> float | None:
        return None if self.seconds is None else self.seconds - (time.monotonic() - self.began)
