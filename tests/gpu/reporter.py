"""Tells the report what pytest tells."""

from __future__ import annotations

import time

import pytest

from tests.gpu.report import Report

REFUSAL = "tests/gpu can run here"
# Of a failure: what it says first, and the end of what pytest prints of it.
FIRST_LINES, LAST_LINES = 8, 30


def said(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it failed or was skipped, in a few lines."""
    found = report.longrepr
    if isinstance(found, tuple):
        return str(found[2])
    crash = getattr(found, "reprcrash", None)
    lines = (report.longreprtext if crash is None else str(crash.message)).strip().splitlines()
    return "\n".join(lines[:FIRST_LINES])


def trace(report: pytest.TestReport | pytest.CollectReport) -> list[str]:
    """The last lines of what pytest prints of a failure."""
    return report.longreprtext.strip().splitlines()[-LAST_LINES:]


class Reporter:
    """A plugin of pytest, in the process that knows of all tests."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._seen: dict[str, list[pytest.TestReport]] = {}
        self._began: dict[str, float] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins. What it said in a process that ended stays."""
        self._began.setdefault(nodeid, time.monotonic())
        if nodeid not in self._seen:
            self._report.begins(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test ended, or the process that ran it."""
        seen = self._seen.setdefault(report.nodeid, [])
        seen.append(report)
        if report.when == "setup" and report.passed:
            return
        failed = [phase for phase in seen if phase.failed]
        skipped = [phase for phase in seen if phase.skipped]
        passed = "rehearsed" if self._report.rehearsal else "passed"
        outcome = "failed" if failed else "needs the GPU" if skipped else passed
        found = dict(report.user_properties)
        seconds = sum(phase.duration for phase in seen)
        told = said((failed or skipped)[0]) if failed or skipped else None
        if failed:
            found["trace"] = trace(failed[0])
            if failed[0].when not in ("setup", "call", "teardown"):
                seconds = time.monotonic() - self._began[report.nodeid]
                told = f"{told}\nits process ended after {seconds:.0f} s, by a fault or as too slow"
        if failed and report.nodeid.endswith(REFUSAL):
            self._report.reason = told
        self._report.ends(report.nodeid, outcome, seconds, told, found)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was read; one that cannot be is told of as a test that failed."""
        if report.failed:
            found = {"trace": trace(report)}
            self._report.ends(report.nodeid, "failed", 0.0, said(report), found)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """All tests ended."""
        self._report.write("passed" if exitstatus == 0 else f"failed (exit code {exitstatus})")
