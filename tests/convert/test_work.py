"""A conversion survives a kill, leaves nothing half-written, and any number of processes make the
same bytes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_vr.convert import work
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.convert.units import Item, group
from megatron_vr.convert.work import carry_out
from megatron_vr.errors import CheckpointError
from megatron_vr.parallel.layout import Layout
from tests.convert.letters import Letters
from tests.convert.stored import assert_same_bits, write_folder


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


WHOLE = {name: name * 10 for name in "abcd"} | {"index": "ABCD"}


def killed(log: Path, destination: Path) -> int:
    """Carry out in a process that kills itself while it writes the third file."""
    code = f"""
from pathlib import Path
from megatron_vr.convert.work import carry_out
from tests.convert.letters import Letters
carry_out(Letters(Path({str(log)!r}), "kill"), {str(destination)!r}, 1)
"""
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def test_after_a_kill_it_goes_on_behind_the_last_finished_file(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    assert killed(log, out) == -signal.SIGKILL
    assert not out.exists(), "a half-written folder appeared under its final name"
    done = carry_out(Letters(log), out, 1)
    # The second was made, and may have been on its way to the disk.
    assert log.read_text() in ("abc" + "cd", "abc" + "bcd")
    assert done.written == 10 * (len(log.read_text()) - 3)
    assert done.total == 40
    assert contents(out) == WHOLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


def test_another_conversion_does_not_go_on_with_what_was_left(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    killed(log, out)
    carry_out(Letters(log, colour="blue"), out, 1)
    assert log.read_text() == "abc" + "abcd"
    assert contents(out) == WHOLE


def test_an_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        carry_out(Letters(log, "interrupt"), out, 1)
    carry_out(Letters(log), out, 1)
    assert log.read_text() in ("abc" + "cd", "abc" + "bcd")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_leaves_nothing(processes: int, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the source is damaged"):
        carry_out(Letters(tmp_path / "log", "error"), tmp_path / "out", processes)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_a_killed_worker_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"killed, perhaps for want of memory.*--processes"):
        carry_out(Letters(tmp_path / "log", "kill", at="d"), tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()
    carry_out(Letters(tmp_path / "log"), tmp_path / "out", 1)
    assert contents(tmp_path / "out") == WHOLE
    assert (tmp_path / "log").read_text().count("a") == 1, "a finished file was made again"


def test_several_processes_make_the_same_folder(tmp_path: Path) -> None:
    carry_out(Letters(tmp_path / "log"), tmp_path / "out", 3)
    assert contents(tmp_path / "out") == WHOLE
    assert sorted((tmp_path / "log").read_text()) == list("abcd")


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    aside = tmp_path / ".out.converting"
    aside.mkdir()
    descriptor = os.open(aside, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(CheckpointError, match="another process is writing"):
            carry_out(Letters(tmp_path / "log"), tmp_path / "out", 1)
    finally:
        os.close(descriptor)


def test_too_little_room_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=work.SIDE_FILES + 39)
    monkeypatch.setattr("megatron_vr.convert.work.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"GB free, but .* GB are to be written"):
        carry_out(Letters(tmp_path / "log"), tmp_path / "out", 1)
    assert list(tmp_path.iterdir()) == []
    usage.free += 1
    carry_out(Letters(tmp_path / "log"), tmp_path / "out", 1)


def test_too_little_room_for_the_rest_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    killed(log, out)
    usage = SimpleNamespace(free=0)
    monkeypatch.setattr("megatron_vr.convert.work.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match="GB free"):
        carry_out(Letters(log), out, 1)
    usage.free = 2 * work.SIDE_FILES
    carry_out(Letters(log), out, 1)
    assert log.read_text().count("a") == 1, "a finished file was made again"
    assert contents(out) == WHOLE


@pytest.mark.parametrize("lost", ["removed", "shortened"])
def test_a_finished_file_that_is_gone_is_made_again(lost: str, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    killed(log, out)
    file = tmp_path / ".out.converting" / "a"
    if lost == "removed":
        file.unlink()
    else:
        file.write_text("aaa")
    carry_out(Letters(log), out, 1)
    assert contents(out) == WHOLE


@pytest.mark.parametrize("kind", ["link", "file"])
def test_a_place_that_no_folder_can_take_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    if kind == "link":
        (tmp_path / "out").symlink_to(tmp_path / "real")
    else:
        (tmp_path / "out").write_text("")
    with pytest.raises(CheckpointError, match=r"link or a mount point|not empty"):
        carry_out(Letters(tmp_path / "log"), tmp_path / "out", 1)
    assert not (tmp_path / "log").exists()


def test_a_source_that_changes_meanwhile_is_an_error(tmp_path: Path) -> None:
    class Changing(Letters):
        def identity(self) -> dict[str, Any]:
            made = self.log.read_text() if self.log.exists() else ""
            return {"changed": "c" in made}

    with pytest.raises(CheckpointError, match="changed meanwhile"):
        carry_out(Changing(tmp_path / "log"), tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Else they would write beside the run that goes on."""
    code = f"""
from pathlib import Path
import time
from megatron_vr.convert.work import carry_out
from tests.convert.letters import Slow
if __name__ == "__main__":
    carry_out(Slow(Path({str(tmp_path / "log")!r})), {str(tmp_path / "out")!r}, 2)
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": "."})
    log = tmp_path / "log"
    wait_until(lambda: log.exists() and len(log.read_text().split()) == 2)
    workers = [int(pid) for pid in log.read_text().split()]
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in workers))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.05)


def test_a_real_conversion_in_several_processes_is_the_same(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", "qwen3_moe", shards="100KB")
    convert_to_megatron(source, tmp_path / "m", Layout(), processes=2, file_bytes=100_000)
    assert len(list((tmp_path / "m").glob("__0_*.distcp"))) > 3
    convert_to_hf(tmp_path / "m", tmp_path / "back", processes=2, shard_bytes=100_000)
    assert_same_bits(source, tmp_path / "back")


def test_units_are_cut_at_stages_and_sizes() -> None:
    items = [Item((str(number), ()), 4, stage) for number, stage in enumerate([0, 0, 0, 1, 1, 2])]
    names = [[item.parameter[0] for item in unit] for unit in group(items, 8)]
    assert names == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert [len(unit) for unit in group(items, 1)] == [1] * 6, "a parameter is never cut"
