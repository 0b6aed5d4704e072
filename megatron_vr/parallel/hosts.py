"""The hosts that one world of ranks is started on, and how they are called."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from megatron_vr.errors import SettingsError

SLURM_NAME = "SLURMD_NODENAME"


def node_name() -> str:
    """As Slurm calls this node, else the host's own name."""
    return os.environ.get(SLURM_NAME) or socket.gethostname()


@dataclass(frozen=True)
class Hosts:
    """`count` hosts, each with a launcher, as number `rank` of them sees it.

    They meet at `meet` (host 0's HOST:PORT) within `meet_seconds`; a launcher that gives no sign
    for `patience_seconds` is taken for dead.
    """

    count: int = 1
    rank: int = 0
    meet: str = ""
    meet_seconds: float = 600.0
    patience_seconds: float = 60.0

    @property
    def address(self) -> tuple[str, int]:
        """Name and port of `meet`. Raises SettingsError where it is no such pair."""
        name, _, port = self.meet.rpartition(":")
        if not name or not port.isdigit() or not 0 < int(port) < 2**16:
            raise SettingsError(
                f"--meet {self.meet!r} is no HOST:PORT, as in gpu-01:29500: a host that all others "
                "reach, and a free port of it"
            )
        return name, int(port)


ONE_HOST = Hosts()


def check_hosts(hosts: Hosts) -> None:
    """Raise SettingsError for a rank or an address with which the hosts cannot meet."""
    if not 0 <= hosts.rank < hosts.count:
        raise SettingsError(
            f"--node-rank is {hosts.rank}, but of --nodes {hosts.count} the ranks are 0 to "
            f"{hosts.count - 1}; under srun it is $SLURM_NODEID"
        )
    if hosts.count > 1:
        _ = hosts.address
