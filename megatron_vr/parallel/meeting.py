"""Launchers of several hosts: they meet before a rank is started, and hear of each other's end.

Host 0 keeps the store that the ranks will meet in too. Each launcher counts in it and watches the
next one's counter, as ranks do (`heartbeat`): they may not have begun, or hang in C code.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from megatron_vr.errors import Requeue, StageError
from megatron_vr.parallel.absent import miss
from megatron_vr.parallel.hosts import Hosts, node_name
from megatron_vr.parallel.interrupt import Interrupt, stopped_after
from megatron_vr.parallel.outcome import GOES_ON, End, first_cause
from megatron_vr.parallel.vital import Silence, watched_by

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

LOOK_SECONDS = 0.5
STORE_TIMEOUT = timedelta(seconds=60)
# How long a launcher whose ranks failed waits to hear of a cause on another host.
SETTLE_SECONDS = 2.0
# A lost store may mean that all launchers are being killed, this one a moment later.
CONFIRM_SECONDS = 3.0
# How much longer than host 0 the others wait: where it lives, it names whom it misses before.
YIELD_SECONDS = 5.0
# How long host 0 keeps the store for others that are ending.
LINGER_SECONDS = 10.0
# How long the ranks of a host may go on saving once those of another have saved and ended.
SAVE_SECONDS = 120.0

ENDED = "hosts/ended"


class Meeting:
    """From entry to exit of the `with` block this launcher is in touch with the others.

    Entry waits for all hosts: it raises StageError naming who did not come in time (and reports
    the host, see `absent`), and Requeue when this launcher or one that has come is asked to stop.
    """

    def __init__(self, hosts: Hosts, interrupt: Interrupt) -> None:
        self._hosts = hosts
        self._interrupt = interrupt
        self._names: list[str] = []
        self._ends: list[End] = []
        self._outbox: list[End] = []
        self._read = 0
        self._rounds = 0
        self._silence = Silence(0, time.monotonic())
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._work, name="meeting", daemon=True)

    def __enter__(self) -> Meeting:
        deadline = time.monotonic() + self._hosts.meet_seconds
        self._store = self._open_store(deadline)
        try:
            self._names = self._gather(deadline)
        except BaseException:
            self._linger(LINGER_SECONDS / 10)
            raise
        self._silence = Silence(0, time.monotonic())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._leaving.set()
        # A store that does not answer may hold the thread; the process ends anyway.
        self._thread.join(self._linger_seconds() + LINGER_SECONDS)

    def heard(self) -> End | None:
        """Why all ranks are to end: what another launcher told, or that one is dead."""
        if self._is_lost() and not self._ends:
            patience = self._hosts.patience_seconds
            self._ends.append(self._dead(0, f"gave no answer for {patience:g} seconds"))
        others = [end for end in self._ends if end.teller != self._hosts.rank or end.blame]
        return first_cause(others) if others else None

    def agree(self, end: End) -> End:
        """Of `end`, this host's own or one that was heard, and what others tell: the one that
        counts for all."""
        own = end not in self._ends
        if own:
            self._outbox.append(end)
        deadline = time.monotonic() + (SETTLE_SECONDS if own else 0.0)
        while self._thread.is_alive() and time.monotonic() < deadline:
            if end in self._ends and (end.is_stop or len(self._ends) >= self._hosts.count):
                break
            time.sleep(0.05)
        return first_cause([*self._ends, end])

    def _open_store(self, deadline: float) -> TCPStore:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port = self._hosts.address
        if self._hosts.rank:
            self._await_port(host, port, deadline)
        try:
            return TCPStore(
                host,
                port,
                is_master=self._hosts.rank == 0,
                timeout=STORE_TIMEOUT,
                wait_for_workers=False,
                multi_tenant=True,  # torch's rendezvous, in this process, uses it too
            )
        except RuntimeError as error:
            raise StageError(
                f"the hosts cannot meet at {self._hosts.meet} (--meet): {_first_line(error)}"
            ) from None

    def _await_port(self, host: str, port: int, deadline: float) -> None:
        while True:
            try:
                socket.create_connection((host, port), timeout=5.0).close()
                return
            except OSError as error:
                if time.monotonic() > deadline + YIELD_SECONDS:
                    come = {self._hosts.rank: node_name()}
                    raise miss(self._hosts, [0], come, error) from None
            self._interrupt.check("waiting for the other hosts")
            time.sleep(LOOK_SECONDS)

    def _gather(self, deadline: float) -> list[str]:
        """The names of all hosts, once all have come."""
        hosts = self._hosts
        try:
            self._store.set(f"hosts/come/{hosts.rank}", node_name())
            while missing := [r for r in range(hosts.count) if not self._has(f"come/{r}")]:
                self._check_meeting()
                if time.monotonic() > deadline:
                    come = [rank for rank in range(hosts.count) if rank not in missing]
                    raise miss(hosts, missing, self._names_of(come))
                time.sleep(LOOK_SECONDS / 2)
            return list(self._names_of(range(hosts.count)).values())
        except RuntimeError as error:
            raise StageError(
                f"host 0 of {hosts.count} ended before all hosts had come to {hosts.meet}: its log "
                f"says why ({_first_line(error)})"
            ) from None

    def _check_meeting(self) -> None:
        """Raise Requeue once this launcher or one that has come is asked to stop."""
        if self._interrupt.requested:
            self._tell(End(self._hosts.rank, node_name(), Requeue.exit_code))
        self._interrupt.check("waiting for the other hosts")
        self._hear()
        if self._ends:
            raise stopped_after("waiting for the other hosts", "a signal to another host")

    def _names_of(self, ranks: Iterable[int]) -> dict[int, str]:
        return {rank: self._store.get(f"hosts/come/{rank}").decode() for rank in ranks}

    def _work(self) -> None:
        """All that is said in the store from now on: it may be gone, or not answer."""
        left: set[int] = set()
        try:
            self._watch(left)
            self._store.set(f"hosts/left/{self._hosts.rank}", "")
            self._linger(self._linger_seconds())
        except RuntimeError:
            self._lose_store(0 in left)

    def _watch(self, left: set[int]) -> None:
        patience, silence = self._hosts.patience_seconds, Silence(0, time.monotonic())
        watched: int | None = None
        while not self._leaving.wait(LOOK_SECONDS) or self._outbox:
            self._store.add(f"hosts/beat/{self._hosts.rank}", 1)
            self._talk()
            before, watched = watched, watched_by(self._hosts.rank, self._hosts.count, left)
            self._rounds += 1
            if watched is None:
                continue
            beats, now = self._store.add(f"hosts/beat/{watched}", 0), time.monotonic()
            silence = silence if watched == before else Silence(beats, now)
            silence = silence.after(beats, now, 2 * LOOK_SECONDS)
            if self._has(f"left/{watched}"):
                left.add(watched)
            elif silence.seconds >= patience:
                self._store.set(f"hosts/left/{watched}", "")
                self._tell(self._dead(watched, f"gave no sign for {patience:g} seconds"))

    def _talk(self) -> None:
        while self._outbox:
            self._tell(self._outbox.pop(0))
        self._hear()

    def _lose_store(self, expected: bool) -> None:
        # After an end was told, host 0 may leave when it has waited long enough for the others.
        known = expected or bool(self._ends)
        if known or self._leaving.wait(CONFIRM_SECONDS):
            return
        self._ends.append(self._dead(0, "is gone, and the store with it"))

    def _dead(self, rank: int, how: str) -> End:
        line = f"the launcher of host {rank} of {self._hosts.count} {how}; {GOES_ON}"
        # Of all that lose host 0, one reports it.
        blame = rank != 0 or self._hosts.rank == 1
        return End(self._hosts.rank, self._names[rank], 1, line, blame)

    def _is_lost(self) -> bool:
        """Whether a host 0 that neither answers nor refuses holds the watching thread."""
        if self._hosts.rank == 0 or not self._thread.is_alive():
            return False
        now = time.monotonic()
        self._silence = self._silence.after(self._rounds, now, 2 * LOOK_SECONDS)
        return self._silence.seconds >= self._hosts.patience_seconds

    def _tell(self, end: End) -> None:
        number = self._store.add(ENDED, 1)
        self._store.set(f"{ENDED}/{number}", json.dumps(asdict(end)))

    def _hear(self) -> None:
        told = self._store.add(ENDED, 0)
        for number in range(self._read + 1, told + 1):
            self._ends.append(End(**json.loads(self._store.get(f"{ENDED}/{number}"))))
        self._read = max(self._read, told)

    def _has(self, key: str) -> bool:
        return bool(self._store.check([f"hosts/{key}"]))

    def _linger_seconds(self) -> float:
        return SAVE_SECONDS if any(end.is_stop for end in self._ends) else LINGER_SECONDS

    def _linger(self, seconds: float) -> None:
        """Host 0 keeps the store until the others need it no longer, or too long."""
        others = [f"hosts/left/{rank}" for rank in range(1, self._hosts.count)]
        deadline = time.monotonic() + seconds
        while self._hosts.rank == 0 and time.monotonic() < deadline:
            if self._store.check(others):
                return
            time.sleep(0.05)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
