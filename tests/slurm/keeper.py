"""Starts the programs it is told of, and kills them and all that came of them when it ends.

Usage: python keeper.py OWNER   with the process id that it does not outlive. It reads orders from
its input, a line of JSON each: {"argv", "environment", "log"}; it ends when the input does.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

PR_SET_CHILD_SUBREAPER = 36


def _kill_all() -> None:
    """Kill every descendant; the subreaper inherits those whose parent ended before."""
    while children := psutil.Process().children(recursive=True):
        for process in children:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _reap()
        time.sleep(0.01)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _start(order: str) -> None:
    told = json.loads(order)
    with open(told["log"], "ab") as log:
        subprocess.Popen(
            told["argv"],
            env=told["environment"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def main(owner: int) -> None:
    """Until the input's end, the owner's, or SIGTERM."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        poll = select.poll()
        owner_ends = os.pidfd_open(owner)
        poll.register(owner_ends, select.POLLIN)
        poll.register(0, select.POLLIN | select.POLLHUP)
        orders = os.fdopen(0, "rb", buffering=0, closefd=False)
        while True:
            ready = [descriptor for descriptor, _ in poll.poll(500)]
            if owner_ends in ready:
                return
            if 0 in ready:
                order = orders.readline()
                if not order:
                    return
                _start(order.decode())
            _reap()
    finally:
        _kill_all()


if __name__ == "__main__":
    main(int(sys.argv[1]))
