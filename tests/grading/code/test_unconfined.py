"""Programs without a sandbox: still within their limits, and gone afterwards."""

from __future__ import annotations

import os
import re
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.grading.code.hostile import SLOW, hostile, seconds_for
from tests.grading.code.judged import judged

# The driver's command line tells its limits, and these are this module's alone.
FILE_BYTES = 2**23 + os.getpid()
NONE = {"sandbox": "none", "file_mib": FILE_BYTES / 2**20, "processes": 4000}

DAEMON = """
import os, signal, sys, time
print(3, flush=True)
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
"""


def _ours() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if f'"files": {FILE_BYTES},' in " ".join(process.info["cmdline"] or [])
    ]


@pytest.fixture(autouse=True)
def nothing_remains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(tmp_path.glob("megatron-vr-code-*")) == []
    _, alive = psutil.wait_procs(_ours(), timeout=60)  # one whose driver was killed ends with it
    assert alive == []
    assert judged("print(3)", seconds_per_test=20.0, **NONE).accepted


@pytest.mark.parametrize("name", ["sleep", "ignore signals", "memory of many processes"])
def test_a_program_ends_at_its_limits(name: str) -> None:
    program, reason = hostile(name)
    found = judged(program, seconds_per_test=seconds_for(reason), **NONE)
    assert re.fullmatch(reason, found.why), found


def test_a_program_that_stops_its_driver_is_too_slow() -> None:
    assert re.fullmatch(SLOW, judged(hostile("stop the driver")[0], **NONE).why)


def test_a_program_that_kills_its_driver_is_not_judged() -> None:
    program = "import os, signal, time; os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    found = judged(program, seconds_per_test=20.0, **NONE)
    assert found.why == "verifier raised: the sandbox was ended from outside"


def test_daemons_end_with_the_program_that_started_them() -> None:
    assert judged(DAEMON, [("", "3")] * 2, seconds_per_test=20.0, **NONE).accepted


def test_too_many_processes_are_ended() -> None:
    program = textwrap.dedent("""
        import os, time
        for _ in range(40):
            if os.fork() == 0:
                break
        time.sleep(600)
    """)
    limits = {**NONE, "processes": 30}
    found = judged(program, seconds_per_test=20.0, **limits)
    assert not found.accepted
    # The kernel refuses an ordinary user's; root's are counted.
    assert "more than 30 processes" in found.why or "BlockingIOError" in found.why


def test_its_folder_goes_with_it(tmp_path: Path) -> None:
    program = (
        "import os\nopen('left', 'w').close()\nopen(input(), 'w').write(os.getcwd())\nprint(3)"
    )
    told = tmp_path / "told"
    assert judged(program, [(str(told), "3")], seconds_per_test=20.0, **NONE).accepted
    folder = Path(told.read_text())
    assert folder.name.startswith("megatron-vr-code-") and not folder.exists()
