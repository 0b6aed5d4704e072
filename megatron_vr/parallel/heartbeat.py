"""Ranks that watch each other: a dead one is named, and the others end.

Each rank counts in a store that rank 0 keeps, and watches the next rank's counter and the
processes beside it. What is seen is judged in `vital`. Works from threads, so that a rank that
waits in a collective is ended too.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any

from megatron_vr.errors import Requeue, StageError, VRError
from megatron_vr.parallel.blame import report_host, tell_followed
from megatron_vr.parallel.members import gather_members, is_gone
from megatron_vr.parallel.vital import Silence, Verdict, find_dead, watched_by
from megatron_vr.parallel.world import World

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOPBACK = ("localhost", "127.0.0.1")
LONGEST_INTERVAL_SECONDS = 1.0
# How long rank 0 keeps the store for the others to read why the run ends.
LINGER_SECONDS = 10.0
# How long a rank whose collective failed waits to hear whether its peer died.
EXPLAIN_SECONDS = 10.0
STORE_TIMEOUT = timedelta(minutes=5)

END, STOPPED = "end", "stopped"
# What gloo says, and NCCL (ncclRemoteError).
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    "remote process exited",
)


class Heartbeat:
    """From entry to exit of the `with` block this rank beats and watches.

    torch.distributed must be initialised; every rank of it enters. A rank that gives no sign for
    `patience_seconds` ends the run: the others name it on standard error and exit with 1. Leaving
    the block says goodbye; leaving it by an exception ends the other ranks with this rank's exit
    code, unless it is Requeue.
    """

    def __init__(self, world: World, patience_seconds: float) -> None:
        self._world = world
        self._patience = patience_seconds
        self._interval = min(LONGEST_INTERVAL_SECONDS, patience_seconds / 5)
        self._left: set[int] = set()
        self._rounds = 0
        self._leaving = threading.Event()
        self._explaining = threading.Event()
        self._judged = threading.Event()
        self._peer_stopped = threading.Event()
        self._verdict: Verdict | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Heartbeat:
        self._store = self._open_store()
        self._members = gather_members(self._world)
        self._me = self._members[self._world.rank]
        works: list[Callable[[], None]] = [self._beat]
        if not self._world.is_main:
            works.append(self._guard)
        self._threads = [
            threading.Thread(target=work, name=f"heartbeat-{work.__name__}", daemon=True)
            for work in works
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._error = error
        self._leaving.set()
        for thread in self._threads:
            # A store that does not answer may hold a thread; the process ends anyway.
            thread.join(2 * LINGER_SECONDS)

    @property
    def peer_stopped(self) -> bool:
        """Whether another rank left because it was asked to stop."""
        return self._peer_stopped.is_set()

    def explain(self, error: RuntimeError) -> None:
        """Say why a collective failed with `error`; return where no peer is the cause.

        Waits up to EXPLAIN_SECONDS, and where a rank of another host was lost until its silence has
        been long enough. Raises StageError naming a dead rank, or Requeue where another rank left
        because it was asked to stop.
        """
        self._explaining.set()
        elsewhere = any(not self._me.beside(member) for member in self._members)
        lost = elsewhere and is_lost_connection(str(error))
        deadline = time.monotonic() + EXPLAIN_SECONDS + (self._patience if lost else 0.0)
        while time.monotonic() < deadline:
            if self._judged.wait(0.1) and self._verdict is not None and self._verdict.died:
                raise StageError(self._told(self._verdict)) from error
            if self.peer_stopped:
                raise stopped_with_peer() from error

    def _open_store(self) -> TCPStore:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host = os.environ.get("MASTER_ADDR", LOOPBACK[0])
        options: dict[str, Any] = {"timeout": STORE_TIMEOUT, "wait_for_workers": False}
        store = None
        if self._world.is_main and host in LOOPBACK:
            # Torch's own listener would be open to the network.
            listener = socket.create_server((host, 0))
            port = listener.getsockname()[1]
            options["master_listen_fd"] = listener.detach()
            store = TCPStore(host, port, is_master=True, **options)
        elif self._world.is_main:
            store = TCPStore(host, 0, is_master=True, **options)
        port = self._world.from_main(store.port if store is not None else 0)
        return store or TCPStore(host, port, **options)

    def _beat(self) -> None:
        verdict = self._watch()
        if verdict is not None:
            self._end(verdict)
        elif self._leaving.is_set():
            # Rank 0 may have died with the store: then nobody is left to hear.
            with suppress(RuntimeError):
                self._say_goodbye()

    def _watch(self) -> Verdict | None:
        """Count, look and judge; None when this rank leaves, or rank 0 did and took the store."""
        silence = Silence(0, time.monotonic())
        watched: int | None = None
        try:
            while not self._leaving.wait(self._interval):
                self._store.add(f"beat/{self._me.rank}", 1)
                before, watched = watched, watched_by(self._me.rank, self._world.size, self._left)
                count = 0 if watched is None else self._store.add(f"beat/{watched}", 0)
                now = time.monotonic()
                silence = silence if watched == before else Silence(count, now)
                silence = silence.after(count, now, 2 * self._interval)
                verdict = self._heard() or self._accused(watched, silence.seconds)
                if verdict is not None:
                    return verdict
                self._rounds += 1
        except RuntimeError:
            # torch's store errors; without a goodbye of rank 0 they mean that it is gone.
            if 0 not in self._left and not self._leaving.is_set():
                return self._blamed(Verdict(0, "the store it keeps does not answer"))
        return None

    def _guard(self) -> None:
        """Judge rank 0, on whose store the beating thread may wait for ever."""
        silence = Silence(0, time.monotonic())
        while not self._leaving.wait(self._interval) and 0 not in self._left:
            silence = silence.after(self._rounds, time.monotonic(), 2 * self._interval)
            if silence.seconds >= self._patience and not self._judged.is_set():
                told = f"its store gave no answer for {self._patience:g} seconds"
                self._end(self._blamed(Verdict(0, told)))
                return

    def _heard(self) -> Verdict | None:
        """What another rank has set: why the run ends, that it stopped, that rank 0 leaves."""
        if self._store.check([END]):
            return Verdict(**json.loads(self._store.get(END)))
        host_leaves = not self._world.is_main and 0 not in self._left and self._has_left(0)
        if self._store.check([STOPPED]):
            self._peer_stopped.set()
        if host_leaves:
            self._release()
        return None

    def _accused(self, watched: int | None, silent_seconds: float) -> Verdict | None:
        # First whose process is gone, then who has left: a rank says goodbye before it goes.
        gone = [
            other.rank
            for other in self._members
            if other.rank not in self._left and self._me.beside(other) and is_gone(other)
        ]
        for rank in {*gone, *([] if watched is None else [watched])}:
            self._has_left(rank)
        verdict = find_dead(watched, silent_seconds, self._patience, gone, self._left)
        if verdict is None:
            return None
        if verdict.rank not in gone:
            self._blamed(verdict)
        # Of several accusers the first is heard.
        first = self._store.compare_set(END, "", json.dumps(asdict(verdict)))
        return Verdict(**json.loads(first))

    def _blamed(self, verdict: Verdict) -> Verdict:
        """`verdict`, its host reported; not where its process is seen to be gone: its launcher
        knows by what."""
        member = self._members[verdict.rank]
        if not (self._me.beside(member) and is_gone(member)):
            report_host(member.host, f"{member} is dead: {verdict.reason}")
        return verdict

    def _has_left(self, rank: int) -> bool:
        if self._store.check([f"left/{rank}"]):
            self._left.add(rank)
        return rank in self._left

    def _end(self, verdict: Verdict) -> None:
        """End this process, or leave that to the main thread where it waits to explain."""
        self._verdict = verdict
        self._judged.set()
        if verdict.rank != 0 or not verdict.died:
            with suppress(RuntimeError):  # rank 0 may have ended before
                self._release(without=verdict.rank)
        if self._leaving.is_set() or (verdict.died and self._explaining.is_set()):
            return
        failed = self._members[verdict.rank]
        if not verdict.died:
            tell_followed(failed.host, f"{failed} {verdict.reason}")
        # On its own host a rank that failed has said why in the same log.
        if verdict.died or not self._me.beside(failed):
            os.write(2, f"megatron-vr: {self._told(verdict)}\n".encode())
        os._exit(verdict.code)

    def _told(self, verdict: Verdict) -> str:
        who, own = self._members[verdict.rank], f"rank {self._me.rank} ends"
        if not verdict.died:
            return f"{who} failed and says why in its log; {own}"
        return (
            f"{who} is dead: {verdict.reason}; {own}; the same command goes on from the last "
            "checkpoint or part"
        )

    def _say_goodbye(self) -> None:
        if isinstance(self._error, Requeue):
            self._store.set(STOPPED, "")
        elif self._error is not None:
            verdict = Verdict(self._me.rank, "it failed", _exit_code(self._error), died=False)
            self._store.compare_set(END, "", json.dumps(asdict(verdict)))
        self._store.set(f"left/{self._me.rank}", "")
        self._release()

    def _release(self, without: int = 0) -> None:
        """Need the store no longer; rank 0 keeps it until the others say so too, or too long."""
        if not self._world.is_main:
            self._store.set(f"free/{self._me.rank}", "")
            return
        others = [f"free/{rank}" for rank in range(1, self._world.size) if rank != without]
        deadline = time.monotonic() + LINGER_SECONDS
        while others and not self._store.check(others) and time.monotonic() < deadline:
            time.sleep(0.05)


def is_lost_connection(message: str) -> bool:
    """Whether a collective's error says that the other end of a connection has gone."""
    return any(text in message for text in _LOST)


def stopped_with_peer() -> Requeue:
    """The error of a rank that was not asked to stop itself."""
    return Requeue(
        "another rank stopped as it was asked to; the same command goes on from the last "
        "checkpoint or part"
    )


def _exit_code(error: BaseException) -> int:
    """With what the command will end: as `cli.guarded` has it."""
    if isinstance(error, VRError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
