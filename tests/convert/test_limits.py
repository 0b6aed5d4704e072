"""Real conversions under real limits: a kill, a full disk, little memory."""

from __future__ import annotations

import json
import os
import shlex
import shutil
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
from tests.convert.stored import (
    assert_same_bits,
    assert_same_companions,
    write_folder,
)

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


@pytest.mark.parametrize("direction", ["to-megatron", "to-hf"])
def test_a_kill_among_the_side_files_leaves_none_by_halves(direction: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf")
    (source / "tokenizer.json").write_text("x" * 100_000)
    steps = {
        "to-megatron": lambda: convert_to_megatron(source, tmp_path / "m", Layout()),
        "to-hf": lambda: convert_to_hf(tmp_path / "m", tmp_path / "back"),
    }
    if direction == "to-hf":
        steps["to-megatron"]()
    process = get_context("fork").Process(target=_killed_at_a_copy, args=[steps[direction]])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    steps[direction]()
    if direction == "to-megatron":
        steps["to-hf"]()
    assert_same_bits(source, tmp_path / "back")
    assert_same_companions(source, tmp_path / "back")


def _killed_at_a_copy(convert: Callable[[], Any]) -> None:
    def copy(source: Path, target: Path) -> None:
        content = source.read_bytes()
        target.write_bytes(content[: len(content) // 2])
        if source.name == "tokenizer.json":
            os.kill(os.getpid(), signal.SIGKILL)

    shutil.copyfile = copy  # type: ignore[assignment]
    convert()


def test_a_corrected_base_does_not_go_on_with_the_wrong_ones_files(tmp_path: Path) -> None:
    """Other heads make other tensors of the same bytes."""
    source = write_folder(tmp_path / "hf", "llama", head_dim=16)
    convert_to_megatron(source, tmp_path / "m", Layout())
    base = tmp_path / "base"
    shutil.copytree(source, base)
    config = json.loads((base / "config.json").read_text())
    wrong = config | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    (base / "config.json").write_text(json.dumps(wrong))

    def convert() -> None:
        convert_to_hf(tmp_path / "m", tmp_path / "back", base=base, shard_bytes=50_000)

    process = get_context("fork").Process(target=_killed_at_the_third_file, args=[convert])
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (base / "config.json").write_text(json.dumps(config))
    convert()
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
source, megatron, out, how = sys.argv[1:]
work._check_room = lambda *known: None  # the disk fills up after it was looked at
if how == "limit":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for convert in (
    lambda: convert_to_megatron(source, out, Layout()),
    lambda: convert_to_hf(megatron, out),
):
    try:
        convert()
    except CheckpointError as error:
        print(error)
"""


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: writes fail in the same way."""
    done = subprocess.run(
        filling(tmp_path, tmp_path / "out", "limit"), capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert len(told) == 2, done.stderr
    assert all("could not be written (File too large)" in line for line in told)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "m"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk; see the limit")
def test_a_really_full_disk_leaves_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    python = filling(tmp_path, disk / "out", "disk")
    script = f"mount -t tmpfs -o size=200k none {disk} && {shlex.join(python)} && ls -A {disk}"
    # In a namespace of its own, which takes the mount with it.
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", script], capture_output=True, text=True, check=True
    )
    told = done.stdout.splitlines()
    assert len(told) == 2, done.stderr
    assert all("could not be written (No space left on device)" in line for line in told)


def filling(folder: Path, out: Path, how: str) -> list[str]:
    """The command of a process that converts a model both ways to `out`, which is too small."""
    source = write_folder(folder / "hf")
    convert_to_megatron(source, folder / "m", Layout())
    return [sys.executable, "-c", FILL, str(source), str(folder / "m"), str(out), how]


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
def resident(line: str) -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[line].split()[0]) * 1024
begun = resident("VmRSS")
source, megatron, out = {str(source)!r}, {str(tmp_path / "m")!r}, {str(tmp_path / "out")!r}
if sys.argv[1] == "to-megatron":
    convert_to_megatron(source, megatron, Layout(tensor=2, pipeline=2), processes=1)
else:
    convert_to_hf(megatron, out, processes=1)
# Not what getrusage says: that counts the process which started this one too.
print(begun, resident("VmHWM"))
"""
    for step in ("to-megatron", "to-hf"):
        done = subprocess.run(
            [sys.executable, "-c", code, step], capture_output=True, text=True, check=True
        )
        begun, used = map(int, done.stdout.split())
        assert used < allowed, f"{step}: {used / GB:.2f} GB for a model of {total / GB:.2f} GB"
        # Beside what the libraries take: the tensors, and some room for the library's own.
        room = 2 * largest + 2**27
        assert used - begun < room, f"{step}: {(used - begun) / GB:.2f} GB over the start"
