"""Conversions of a model of 7 billion random parameters: time over `cp`, and peak memory.

    python -m tools.bench.convert --folder /where/there/are/50/GB

Makes the model on the spot and deletes everything it wrote. Both sides end with their bytes on the
disk (`cp` is followed by a sync), and what they read is not in the page cache when they begin.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import Qwen2Config

from megatron_vr.convert.hf_reader import INDEX
from megatron_vr.convert.hf_writer import write_shard
from megatron_vr.convert.maps import expected_tensors
from megatron_vr.models.architecture import read_architecture
from tools.bench.harness import Result, show

SHAPES = {
    # Qwen2.5-7B's.
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    },
    # Qwen2.5-1.5B's, untied.
    "1.5b": {
        "vocab_size": 151936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "small": {
        "vocab_size": 32768,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
    },
}
SHARDS = 4
COMMAND = (sys.executable, "-m", "megatron_vr")

# A process inherits the peak of the one that starts it, so a small one stands between.
_MEASURE = (
    "import resource, subprocess, sys; "
    "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
)


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=None)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        results = measure(Path(folder), chosen.shape, chosen.rounds, chosen.processes)
    show(f"conversions, {chosen.shape}", results, chosen.json)


def measure(folder: Path, shape: str, rounds: int, processes: int | None) -> list[Result]:
    """Both directions against `cp` in turn, and whether the bytes came back."""
    source, megatron, back, copy = (folder / name for name in ("hf", "megatron", "back", "copy"))
    largest, total = write_random(source, SHAPES[shape])
    options = ["--processes", str(processes)] if processes else []
    results = []
    for name, command, origin, made in (
        ("to-megatron --tp 2 --pp 2", ["--tp", "2", "--pp", "2"], source, megatron),
        ("to-hf", [], megatron, back),
    ):
        words = ["convert", name.split()[0], str(origin), str(made), *command, *options]
        ours, theirs, peaks = [], [], []
        for number in range(rounds):
            # Each begins every other round: what was read last may be in a cache below this one.
            if number % 2:
                theirs.append(timed_copy(origin, copy))
            shutil.rmtree(made, ignore_errors=True)
            seconds, peak = timed([*COMMAND, *words], origin)
            ours.append(seconds)
            peaks.append(peak)
            if number % 2 == 0:
                theirs.append(timed_copy(origin, copy))
        mine, cp = statistics.median(ours), statistics.median(theirs)
        detail = f"{mine:.1f} s, cp {cp:.1f} s, {total / 1e9:.1f} GB"
        results.append(Result(f"{name}: time over cp", mine / cp, "≤ 1.5", detail))
        allowed = 2 * largest + 0.7e9
        detail = f"{max(peaks) / 1e9:.2f} GB; largest tensor {largest / 1e9:.2f} GB"
        name = f"{name}: peak memory of a process over the allowed"
        results.append(Result(name, max(peaks) / allowed, "≤ 1", detail))
    words = ["convert", "check", str(source), str(back), "--no-logits", "--json"]
    done = subprocess.run([*COMMAND, *words], check=False, capture_output=True, text=True)
    equal = json.loads(done.stdout)["tensors"]["equal"]
    results.append(Result("tensors equal after both", equal / len(_names(source)), "= 1"))
    return results


def timed(command: list[str], origin: Path) -> tuple[float, int]:
    """Seconds, and the peak bytes of its largest process."""
    forget(origin)
    began = time.perf_counter()
    measured = [sys.executable, "-c", _MEASURE, *command]
    done = subprocess.run(measured, check=True, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - began, int(done.stdout)


def timed_copy(origin: Path, copy: Path) -> float:
    """Seconds of `cp -r` and the sync of what it wrote."""
    forget(origin)
    began = time.perf_counter()
    subprocess.run(["cp", "-r", str(origin), str(copy)], check=True)
    subprocess.run(["sync", *map(str, copy.iterdir())], check=True)
    seconds = time.perf_counter() - began
    shutil.rmtree(copy)
    return seconds


def forget(folder: Path) -> None:
    """Take the files of `folder` out of the page cache, so that both sides read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write_random(folder: Path, shape: dict[str, int]) -> tuple[int, int]:
    """A Qwen2 of random bfloat16 weights in four shards; bytes of its largest tensor and of all."""
    Qwen2Config(
        **shape, tie_word_embeddings=False, architectures=["Qwen2ForCausalLM"]
    ).save_pretrained(folder)
    shapes = list(expected_tensors(read_architecture(folder)).items())
    noise = torch.randn(2**26, generator=torch.Generator().manual_seed(0)).bfloat16()
    share = -(-len(shapes) // SHARDS)
    shard_of: dict[str, str] = {}
    for number in range(SHARDS):
        held = dict(shapes[number * share : (number + 1) * share])
        name = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        header = {tensor: (size, torch.bfloat16) for tensor, size in held.items()}
        write_shard(folder / name, header, _drawn(held, noise), lambda amount: None, 0)
        shard_of |= dict.fromkeys(held, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    sizes = [2 * torch.Size(size).numel() for _, size in shapes]
    return max(sizes), sum(sizes)


def _drawn(held: dict[str, tuple[int, ...]], noise: torch.Tensor) -> Iterator[torch.Tensor]:
    """Stretches of the noise, each from another place: drawing all anew would take minutes."""
    for number, size in enumerate(held.values()):
        count = torch.Size(size).numel()
        turned = noise.roll(7919 * number)
        yield turned.repeat(-(-count // len(noise)))[:count].reshape(size)


def _names(folder: Path) -> dict[str, str]:
    names: dict[str, str] = json.loads((folder / INDEX).read_text())["weight_map"]
    return names


if __name__ == "__main__":
    main()
