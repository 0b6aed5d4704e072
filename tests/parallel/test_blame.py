"""Which hosts are reported, where, and for what: a program's own faults cost no host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_vr.parallel.blame import (
    FAILED_NODES,
    Report,
    blaming_this_host,
    is_hardware_fault,
    read_reports,
    report_host,
    reports_of_ranks,
    tell_followed,
)
from megatron_vr.parallel.hosts import node_name
from megatron_vr.parallel.outcome import End, Failure, end_of, first_cause, judge

# As torch, CUDA and NCCL word them.
BROKEN = [
    "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might be asynchronously "
    "reported at some other API call",
    "NCCL error in: ProcessGroupNCCL.cpp:2093, unhandled cuda error (run with NCCL_DEBUG=INFO for "
    "details), NCCL version 2.21.5\nncclUnhandledCudaError: Call to CUDA function failed.\n"
    "Last error:\nCuda failure 214 'uncorrectable ECC error encountered'",
    "CUDA error: no CUDA-capable device is detected",
    "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: Invalid access of peer GPU memory over nvlink or a hardware error",
    "No CUDA GPUs are available",
    "GPU 00000000:4E:00.0: GPU has fallen off the bus.",
    "NVRM: Xid (PCI:0000:4e:00): 79, pid=1234, GPU has fallen off the bus.",
    "CUDA error: system not yet initialized",
]
SOUND = [
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: unspecified launch failure",
    "CUDA error: device-side assert triggered",
    "CUDA error: invalid device ordinal",
    "NCCL error: remote process exited or there was a network error, NCCL version 2.21.5\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting",
    "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE)",
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer",
    "mat1 and mat2 shapes cannot be multiplied (4x8 and 7x2)",
    "",
]


@pytest.mark.parametrize("message", BROKEN)
def test_broken_hardware_is_known_by_what_it_says(message: str) -> None:
    assert is_hardware_fault(message)


@pytest.mark.parametrize("message", SOUND)
def test_a_programs_fault_costs_no_host(message: str) -> None:
    assert not is_hardware_fault(message)


def test_a_report_is_one_line_and_comes_once_for_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "failed"
    monkeypatch.setenv(FAILED_NODES, str(file))
    report_host("gpu-1", "it\nbroke\n  twice")
    report_host("gpu-1", "again")
    report_host("gpu-17", "x" * 5000)
    lines = file.read_text().splitlines()
    assert lines[0] == "gpu-1 it broke twice"
    assert [line.split()[0] for line in lines] == ["gpu-1", "gpu-17"]
    assert len(lines[1]) < 500
    assert read_reports(file)[0] == Report("gpu-1", "it broke twice")


def test_without_a_file_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(FAILED_NODES, raising=False)
    monkeypatch.chdir(tmp_path)
    report_host("gpu-1", "broke")
    assert not list(tmp_path.iterdir())
    assert read_reports(tmp_path / "none") == []


def test_reports_of_many_processes_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "failed"
    code = (
        "import sys; from megatron_vr.parallel.blame import report_host\n"
        "for i in range(100): report_host(f'node-{sys.argv[1]}-{i}', 'because ' * 40)"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], env=os.environ | {FAILED_NODES: str(file)}
        )
        for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    lines = file.read_text().splitlines()
    assert len(lines) == 400
    assert all(line.startswith("node-") and line.count("node-") == 1 for line in lines)


def test_an_error_of_the_hardware_is_reported_on_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "failed"
    monkeypatch.setenv(FAILED_NODES, str(file))
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-7")
    with pytest.raises(RuntimeError, match="shapes"), blaming_this_host():
        raise RuntimeError(SOUND[-2] + " shapes")
    assert not file.exists()
    with pytest.raises(RuntimeError, match="NCCL"), blaming_this_host():
        raise RuntimeError(BROKEN[1])
    assert file.read_text() == "gpu-7 Cuda failure 214 'uncorrectable ECC error encountered'\n"


def test_ranks_report_to_their_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer = tmp_path / "failed"
    monkeypatch.setenv(FAILED_NODES, str(outer))
    with reports_of_ranks() as own:
        report_host("gpu-1", "it is silent")
        tell_followed("gpu-2", "rank 8 failed")
        assert read_reports(own.blamed) == [Report("gpu-1", "it is silent")]
        assert read_reports(own.followed) == [Report("gpu-2", "rank 8 failed")]
    tell_followed("gpu-3", "nobody asks")
    assert not outer.exists() and not own.folder.exists()
    assert os.environ[FAILED_NODES] == str(outer)


def test_a_node_is_called_as_slurm_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "gpu-17")
    assert node_name() == "gpu-17"
    monkeypatch.delenv("SLURMD_NODENAME")
    assert node_name() == os.uname().nodename


# --- what the end of ranks says about their host


@pytest.mark.parametrize(
    ("code", "stopping", "blame"),
    [
        (-signal.SIGKILL, False, True),
        (-signal.SIGBUS, False, True),
        (-signal.SIGSEGV, False, False),
        (-signal.SIGKILL, True, False),
        (-signal.SIGABRT, False, False),
        (-signal.SIGTERM, False, False),
        (1, False, False),
        (7, False, False),
        (75, False, False),
    ],
)
def test_a_signal_that_nobody_of_us_sent_is_put_down_to_the_host(
    code: int, stopping: bool, blame: bool
) -> None:
    assert judge([Failure(3, 12, code, 100)], stopping).blame == blame


@pytest.mark.parametrize("stopping", [False, True])
def test_who_was_killed_for_want_of_memory_costs_no_host(stopping: bool) -> None:
    outcome = judge([Failure(3, 12, -signal.SIGKILL, 100)], stopping, starved=True)
    assert (outcome.code, outcome.blame) == (1, False)
    told = "rank 3 (pid 12) was killed for want of memory; raise `memory` of this kind of job"
    assert (outcome.line or "").startswith(told)


def test_broken_memory_is_not_taken_for_want_of_it() -> None:
    outcome = judge([Failure(3, 12, -signal.SIGBUS, 100)], False, starved=True)
    assert outcome.blame and "SIGBUS" in (outcome.line or "")


def test_a_rank_that_the_agent_ended_is_not_named_for_the_one_that_failed() -> None:
    failures = [Failure(0, 10, -signal.SIGTERM, 100), Failure(1, 11, 1, 100)]
    assert judge(failures, False).line is None


def test_what_ranks_reported_is_told_with_their_end() -> None:
    outcome = judge([Failure(0, 10, 1, 100)], False)
    silent = [Report("gpu-2", "rank 9 is silent"), Report("gpu-3", "rank 17 is silent")]
    end = end_of(outcome, 0, "gpu-1", silent)
    assert (end.node, end.code, end.blame) == ("gpu-2", 1, True)
    assert end.line is not None and end.line.startswith("rank 9 is silent; ")
    assert end_of(outcome, 0, "gpu-1") == End(0, "gpu-1", 1)


def test_a_rank_that_ended_after_another_hosts_failure_tells_that_host() -> None:
    outcome = judge([Failure(0, 10, 2, 100)], False)
    followed = [Report("gpu-2", "rank 9 failed")]
    assert end_of(outcome, 0, "gpu-1", [], followed) == End(0, "gpu-2", 2)
    assert end_of(judge([], False), 0, "gpu-1", [], followed) == End(0, "gpu-1", 0)


def test_a_killed_rank_counts_before_what_its_peers_saw() -> None:
    outcome = judge([Failure(0, 10, -signal.SIGKILL, 100)], False)
    end = end_of(outcome, 0, "gpu-1", [Report("gpu-2", "rank 9 is silent")])
    assert end.node == "gpu-1" and end.blame


FOLLOWED = End(0, "gpu-1", 1)
KILLED = End(1, "gpu-2", 1, "rank 8 was killed by SIGKILL; …", blame=True)
SILENT = End(2, "gpu-3", 1, "the launcher gave no sign; …", blame=True)
STOPPED = End(2, "gpu-3", 75)


@pytest.mark.parametrize(
    ("ends", "cause"),
    [
        ([FOLLOWED], FOLLOWED),
        ([FOLLOWED, KILLED], KILLED),
        ([KILLED, FOLLOWED], KILLED),
        ([KILLED, SILENT], KILLED),
        ([FOLLOWED, STOPPED], STOPPED),
        ([STOPPED, KILLED], STOPPED),
        ([KILLED, STOPPED], KILLED),
    ],
)
def test_of_several_hosts_the_first_with_a_cause_counts(ends: list[End], cause: End) -> None:
    assert first_cause(ends) == cause
