"""Which host is to be left out of the next attempt: told in a file, a line for each.

The file is the one that `MEGATRON_VR_FAILED_NODES` names; a job's script reads it. A launcher
hands its ranks a file of its own instead, and tells the first cause of all that it hears.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megatron_vr.parallel.hosts import node_name

FAILED_NODES = "MEGATRON_VR_FAILED_NODES"
FOLLOWED_NODE = "MEGATRON_VR_FOLLOWED_NODE"
LONGEST_REASON = 400

# Texts of CUDA, torch and NCCL (in small letters) that speak of a broken GPU, link or driver.
# Not "unspecified launch failure", "an illegal memory access" or "unknown error": a kernel's own
# mistake says the same, and would cost a sound node at every attempt. Not NCCL's "remote process
# exited" or "socket timeout" either: there another host is the cause.
_HARDWARE = (
    "uncorrectable ecc error",
    "fallen off the bus",
    "gpu is lost",
    "nvrm: xid",
    "uncorrectable nvlink error",
    "peer gpu memory over nvlink or a hardware error",
    "no cuda-capable device is detected",
    "cuda-capable device(s) is/are busy or unavailable",
    "no cuda gpus are available",
    "cuda driver initialization failed",
    "system not yet initialized",  # NVSwitch hosts whose fabric manager does not run
    "unsupported display driver / cuda driver combination",
)


@dataclass(frozen=True)
class Report:
    """A host, and why it is to be left out."""

    host: str
    reason: str


def hardware_fault(message: str) -> str | None:
    """The line of an error that speaks of this host's hardware or driver; None without one."""
    lines = (line.strip() for line in message.splitlines())
    return next((line for line in lines if any(text in line.lower() for text in _HARDWARE)), None)


def is_hardware_fault(message: str) -> bool:
    """Whether an error speaks of this host's hardware or driver, not of the program."""
    return hardware_fault(message) is not None


def report_host(host: str, reason: str) -> None:
    """Add the line `HOST REASON`, once for a host; nothing where no file is asked for."""
    _append(os.environ.get(FAILED_NODES), host, reason)


def tell_followed(host: str, reason: str) -> None:
    """Tell the launcher, where there is one, that this rank ends because one of `host` failed."""
    _append(os.environ.get(FOLLOWED_NODE), host, reason)


def _append(file: str | None, host: str, reason: str) -> None:
    if not file or host in {report.host for report in read_reports(Path(file))}:
        return
    words = " ".join(reason.split())[:LONGEST_REASON]
    # One write in append mode: lines of several processes do not mix.
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(descriptor, f"{host} {words}\n".encode())
    finally:
        os.close(descriptor)


def read_reports(file: Path) -> list[Report]:
    """The lines of `file`, oldest first; none where it is not there."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = (line.partition(" ") for line in lines if line.strip())
    return [Report(host, reason) for host, _, reason in pairs]


@contextmanager
def blaming_this_host() -> Iterator[None]:
    """An error that speaks of broken hardware is reported on its way through."""
    try:
        yield
    except Exception as error:
        fault = hardware_fault(str(error))
        if fault is not None:
            report_host(node_name(), fault)
        raise


@dataclass(frozen=True)
class RankReports:
    """Files in which the ranks of a launcher tell what they know, in `folder`."""

    folder: Path

    @property
    def blamed(self) -> Path:
        """Hosts to leave out."""
        return self.folder / "blamed"

    @property
    def followed(self) -> Path:
        """Hosts whose rank failed first and said why."""
        return self.folder / "followed"


@contextmanager
def reports_of_ranks() -> Iterator[RankReports]:
    """Files of this block's own, for the processes that are started in it."""
    with tempfile.TemporaryDirectory(prefix="megatron-vr-") as folder:
        reports = RankReports(Path(folder))
        files = {FAILED_NODES: str(reports.blamed), FOLLOWED_NODE: str(reports.followed)}
        before = {name: os.environ[name] for name in files if name in os.environ}
        os.environ |= files
        try:
            yield reports
        finally:
            for name in files:
                del os.environ[name]
            os.environ |= before
