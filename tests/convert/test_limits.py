"""Real conversions under real limits: a kill, a full disk, little memory."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.convert import work
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.parallel.layout import Layout
from tests.convert.sparse import write_sparse
from tests.convert.stored import assert_same_bits, write_folder

GB = 10**9


@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_a_real_conversion_goes_on_after_a_kill(direction: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    steps = {
        "to-megatron": lambda: convert_to_megatron(
            source, tmp_path / "m", Layout(), file_bytes=50_000
        ),
        "to-hf": lambda: convert_to_hf(tmp_path / "m", tmp_path / "back", shard_bytes=50_000),
    }
    if direction == "to-hf":
        steps["to-megatron"]()
    process = get_context("fork").Process(target=_killed_at_the_third_file, args=[steps[direction]])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    made = tmp_path / ("m" if direction == "to-megatron" else "back")
    assert not made.exists()
    done = steps[direction]()
    assert 0 < done.written < done.total, "it began anew"
    if direction == "to-megatron":
        steps["to-hf"]()
    assert_same_bits(source, tmp_path / "back")


def _killed_at_the_third_file(convert: Callable[[], Any]) -> None:
    synced = []

    def sync(path: Path, *, forget: bool) -> None:
        synced.append(path)
        if len(synced) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    work.sync_file = sync  # type: ignore[assignment]
    convert()


FILL = """
import resource, signal, sys
from megatron_vr.convert import work
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.errors import CheckpointError
from megatron_vr.parallel.layout import Layout
source, out, how, direction = sys.argv[1:]
work._check_room = lambda *known: None  # the disk fills up after it was looked at
if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    if direction == "to-hf":
        convert_to_hf(source, out)
    else:
        convert_to_megatron(source, out, Layout())
except CheckpointError as error:
    print(error)
"""


@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_a_disk_that_fills_up_leaves_nothing(direction: str, tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writes fail in the same way."""
    source = convertible(tmp_path, direction)
    words = [sys.executable, "-c", FILL, str(source), str(tmp_path / "out"), "limit", direction]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "could not be written (File too large)" in done.stdout, done.stderr
    assert "out" not in "".join(path.name for path in tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk; see the limit")
@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_a_really_full_disk_leaves_nothing(direction: str, tmp_path: Path) -> None:
    source, disk = convertible(tmp_path, direction), tmp_path / "disk"
    disk.mkdir()
    python = [sys.executable, "-c", FILL, str(source), str(disk / "out"), "disk", direction]
    script = f"mount -t tmpfs -o size=200k none {disk} && {shlex.join(python)} && ls -A {disk}"
    # In a namespace of its own, which takes the mount with it.
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, check=True
    )
    (told,) = done.stdout.splitlines()
    assert "could not be written (No space left on device)" in told


def convertible(folder: Path, direction: str) -> Path:
    """What a conversion in that direction can begin with."""
    source = write_folder(folder / "hf")
    if direction == "to-hf":
        convert_to_megatron(source, folder / "m", Layout())
        return folder / "m"
    return source


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """At most twice the largest tensor and 0.7 GB, for a model of more than that."""
    source = write_sparse(tmp_path / "hf")
    largest = 64 * 2**20
    total = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    allowed = 2 * largest + 0.7 * GB
    assert total > 1.4 * allowed, "the model is too small to tell"
    code = f"""
import sys
from pathlib import Path
from megatron_vr.convert.to_hf import convert_to_hf
from megatron_vr.convert.to_megatron import convert_to_megatron
from megatron_vr.parallel.layout import Layout
source, megatron, out = {str(source)!r}, {str(tmp_path / "m")!r}, {str(tmp_path / "out")!r}
if sys.argv[1] == "to-megatron":
    convert_to_megatron(source, megatron, Layout(tensor=2, pipeline=2), processes=1)
else:
    convert_to_hf(megatron, out, processes=1)
# Not what getrusage says: that counts the process which started this one too.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""
    for step in ("to-megatron", "to-hf"):
        done = subprocess.run(
            [sys.executable, "-c", code, step], capture_output=True, text=True, check=True
        )
        used = int(done.stdout)
        assert used < allowed, f"{step}: {used / GB:.2f} GB for a model of {total / GB:.2f} GB"
