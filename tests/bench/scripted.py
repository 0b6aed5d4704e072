"""A part whose cases do what their names say, in processes like those of the real parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

from tools.bench.on_gpu.place import NotHere, Place, Row


class OutOfMemoryError(Exception):
    """As torch calls it."""


def measure(case: str, place: Place) -> Iterator[Row]:
    """The case `case`."""
    yield Row("begun", {"process": os.getpid(), "smaller": place.smaller, "nan": float("nan")})
    if case == "fails":
        raise ValueError("this case fails\nand says more")
    if case == "dies":
        print("the last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "hangs":
        # Its own process, which must not outlive it.
        print("it hangs now", flush=True)
        held = subprocess.Popen(["sleep", "600"])
        yield Row("child", {"process": held.pid})
        time.sleep(600)
    if case == "not here":
        raise NotHere("it is not here")
    mark = place.folder / "hung"
    if case == "hangs once" and not mark.exists():
        mark.touch()
        time.sleep(600)
    if case.endswith(("too large", "too-large")) and place.smaller < 2:
        raise OutOfMemoryError("CUDA out of memory")
    yield Row("ended", {"smaller": place.smaller})
