"""Hosts that did not come to a meeting: how they are called, and which are left out next time."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_vr.errors import StageError
from megatron_vr.parallel.blame import FAILED_NODES, Report, read_reports, report_host
from megatron_vr.parallel.hosts import Hosts
from megatron_vr.parallel.nodelist import nodes_of_step


def miss(
    hosts: Hosts, missing: Sequence[int], come: Mapping[int, str], error: OSError | None = None
) -> StageError:
    """The error that names the `missing` ranks of hosts, which are reported where to blame.

    `come` has the names of those that are known to be there; `error` is why host 0 is not reached.
    """
    names = nodes_of_step(os.environ, hosts.count, come)
    # A name that is not found is this host's or the site's fault.
    if not isinstance(error, socket.gaierror):
        file = os.environ.get(FAILED_NODES)
        for report in to_blame(hosts, missing, names, read_reports(Path(file)) if file else []):
            report_host(report.host, report.reason)
    called = [f"{rank} ({names[rank]})" if rank in names else str(rank) for rank in missing]
    here = ", ".join(f"{rank} ({name})" for rank, name in come.items())
    why = f" ({error}: see to it that this host reaches that one)" if error is not None else ""
    return StageError(
        f"host {', '.join(called)} of {hosts.count} did not come to {_when(hosts)}{why}; there are "
        f"{here}. Look into its log, and start all hosts with the same --nodes and --meet"
    )


def to_blame(
    hosts: Hosts, missing: Sequence[int], names: Mapping[int, str], blamed: Sequence[Report]
) -> list[Report]:
    """The `missing` hosts to leave out of the next attempt, as the launcher of `hosts` sees it.

    None where most are missing: that has a cause which they share, as an address or a port that is
    closed. None where this host is `blamed` itself: then it is the one that did not get through.
    """
    if 2 * len(missing) > hosts.count or names[hosts.rank] in {report.host for report in blamed}:
        return []
    return [
        Report(names[rank], f"host {rank} of {hosts.count} did not come to {_when(hosts)}")
        for rank in missing
        if rank in names
    ]


def _when(hosts: Hosts) -> str:
    return f"{hosts.meet} within {hosts.meet_seconds:g} s (cluster.meet_seconds)"
