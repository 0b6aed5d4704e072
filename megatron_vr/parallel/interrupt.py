"""SIGTERM and SIGUSR1 ask a run to stop: they set a flag; the work looks at it where it saved."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

from megatron_vr.errors import Requeue

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupt:
    """Whether this process was asked to stop.

    SIGINT is not handled: it stays KeyboardInterrupt. A second signal changes nothing; who has no
    more patience sends SIGKILL.
    """

    def __init__(self) -> None:
        self.signum: signal.Signals | None = None
        self._process = os.getpid()
        self._old: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signum is not None

    @property
    def signal_name(self) -> str | None:
        """Name of the first signal that came, as in `SIGUSR1`."""
        return self.signum.name if self.signum is not None else None

    def install(self) -> None:
        """Handle the signals from now on. Raises ValueError outside the main thread."""
        for signum in SIGNALS:
            self._old[signum] = signal.signal(signum, self._note)

    def restore(self) -> None:
        """Give the signals back to who handled them before."""
        while self._old:
            signum, handler = self._old.popitem()
            signal.signal(signum, handler)

    def check(self, what: str) -> None:
        """Raise Requeue if a signal has come; `what` is that which was finished and saved."""
        if self.signal_name is not None:
            raise stopped_after(what, self.signal_name)

    def __enter__(self) -> Interrupt:
        self.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked child has the handler, but nobody in it looks at the flag.
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self.signum is None:
            self.signum = signal.Signals(signum)


def stopped_after(what: str, signal_name: str) -> Requeue:
    """The error that ends the command with exit code 75."""
    return Requeue(
        f"{signal_name} received: stopped after {what}; the same command goes on from there"
    )
