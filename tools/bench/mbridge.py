"""Conversions against mbridge's load and save of the same model, in turn on one machine.

    pip install --no-deps mbridge
    python -m tools.bench.mbridge --folder /where/there/is/room

mbridge builds its models of Transformer Engine's layers only. Without a GPU it is given ours, whose
norms have other names, and told those; its loading, splitting, merging and writing are its own. It
keeps the model in memory and writes no Megatron checkpoint; we write one to the disk and read it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.bench.convert import COMMAND, SHAPES, forget, timed, write_random
from tools.bench.harness import Result, show


def main() -> None:
    """Measure, and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.5b")
    parser.add_argument("--folder", type=Path, default=None, help="where to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--theirs", nargs=2, metavar=("SRC", "DST"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.theirs:
        load_and_save(*map(Path, chosen.theirs))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        results = measure(Path(folder), chosen.shape, chosen.rounds)
    show(f"against mbridge, {chosen.shape}", results, chosen.json)


def measure(folder: Path, shape: str, rounds: int) -> list[Result]:
    """Seconds and peak memory of both, and whether both brought the bytes back."""
    source, megatron, ours, theirs = (folder / n for n in ("hf", "megatron", "ours", "theirs"))
    write_random(source, SHAPES[shape])
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    peaks: dict[str, list[int]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        for path in (megatron, ours, theirs):
            shutil.rmtree(path, ignore_errors=True)
        there = timed([*COMMAND, "convert", "to-megatron", str(source), str(megatron)], source)
        back = timed([*COMMAND, "convert", "to-hf", str(megatron), str(ours)], megatron)
        seconds["ours"].append(there[0] + back[0])
        peaks["ours"] += [there[1], back[1]]
        module = [sys.executable, "-m", "tools.bench.mbridge"]
        taken, peak = timed([*module, "--theirs", str(source), str(theirs)], source)
        began = time.perf_counter()
        forget(theirs)  # ours are synced
        seconds["theirs"].append(taken + time.perf_counter() - began)
        peaks["theirs"].append(peak)
    for made in (ours, theirs):
        words = ["convert", "check", str(source), str(made), "--no-logits", "--json"]
        done = subprocess.run([*COMMAND, *words], check=False, capture_output=True, text=True)
        assert set(json.loads(done.stdout)["tensors"]) == {"equal"}, f"{made} is another model"
    mine, other = (sorted(seconds[who])[rounds // 2] for who in ("ours", "theirs"))
    size, theirs_size = max(peaks["ours"]) / 1e9, max(peaks["theirs"]) / 1e9
    return [
        Result("time over mbridge", mine / other, "≤ 1", f"{mine:.1f} s, {other:.1f} s"),
        Result(
            "peak memory of a process over mbridge's",
            size / theirs_size,
            "≤ 1",
            f"{size:.2f} GB, {theirs_size:.2f} GB",
        ),
    ]


def load_and_save(source: Path, destination: Path) -> None:
    """mbridge's `load_weights` and `save_weights`."""
    from mbridge.models.qwen2 import Qwen2Bridge  # type: ignore[import-not-found]
    from transformers import AutoConfig

    from megatron_vr.models.architecture import read_architecture
    from megatron_vr.models.gpt import build_model
    from megatron_vr.parallel.layout import Layout
    from tools.bench.harness import form_groups

    norms = {
        "input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"],
        "pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"],
    }
    Qwen2Bridge._OTHER_MAPPING = Qwen2Bridge._OTHER_MAPPING | norms
    Qwen2Bridge._MLP_MAPPING = Qwen2Bridge._MLP_MAPPING | norms
    form_groups()
    models = build_model(
        read_architecture(source),
        Layout(),
        spec="plain",
        dtype="bfloat16",
        recompute="none",
        log_prob_chunk="auto",
    )
    bridge = Qwen2Bridge(AutoConfig.from_pretrained(source))
    bridge.load_weights(models, str(source), memory_efficient=True)
    bridge.save_weights(models, str(destination), memory_efficient=True)


if __name__ == "__main__":
    main()
