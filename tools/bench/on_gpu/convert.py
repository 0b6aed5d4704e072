"""A checkpoint of the 4B shape: random weights → Hugging Face folder → `convert to-megatron` →
Transformer Engine layers on the GPU, whose log-probs are compared with Transformers'.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from megatron_vr.convert.hf_reader import INDEX
from megatron_vr.convert.load import load_megatron
from megatron_vr.convert.maps import expected_tensors
from megatron_vr.models.architecture import Architecture
from megatron_vr.models.gpt import build_model
from megatron_vr.parallel.layout import Layout
from megatron_vr.training.scoring import Sequenced, score
from tools.bench.on_gpu.ours import DEVIATION, form_groups_once
from tools.bench.on_gpu.place import NotHere, Place, Row
from tools.bench.on_gpu.shapes import hf_fields, whole_shape
from tools.bench.on_gpu.timing import collect

SHARDS = 4
GB = 1e9
# Twice the checkpoint, and what a conversion writes beside it.
FREE_BYTES = 20e9
LENGTHS = (512, 301, 64, 17)


def measure(case: str, place: Place) -> Iterator[Row]:
    """The one case of the part `convert`, named after its shape."""
    architecture = whole_shape(case, place)
    free = shutil.disk_usage(place.folder).free
    if free < place.sized(FREE_BYTES, 1e8):
        raise NotHere(
            f"{place.folder} has {free / GB:.0f} GB free and {FREE_BYTES / GB:.0f} are needed; "
            "name another folder in TMPDIR"
        )
    with tempfile.TemporaryDirectory(dir=place.folder) as name:
        source, made = Path(name) / "hf", Path(name) / "megatron"
        began = time.perf_counter()
        size = write_random(source, architecture, place)
        yield _row("written", began, size)
        began = time.perf_counter()
        command = [sys.executable, "-m", "megatron_vr", "convert", "to-megatron"]
        done = subprocess.run(
            [*command, str(source), str(made)], check=False, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"convert to-megatron: {done.stderr.strip().splitlines()[-1]}")
        yield _row("convert to-megatron", began, size)
        sequences = drawn(architecture)
        began = time.perf_counter()
        model = loaded(made, architecture, place)
        yield _row("loaded into the layers", began, size)
        ours = score(model, sequences, 2048)
        del model
        collect()
        wide, narrow = reference(source, sequences, place)
        yield Row("log-probs", compared([found.log_probs for found in ours], wide, narrow))


def _row(name: str, began: float, size: int) -> Row:
    seconds = time.perf_counter() - began
    return Row(name, {"seconds": seconds, "gb": size / GB, "gb_per_s": size / GB / seconds})


def write_random(folder: Path, architecture: Architecture, place: Place) -> int:
    """A Hugging Face folder of bfloat16 weights that were drawn on the device; their bytes."""
    Qwen3Config(**hf_fields(architecture), dtype="bfloat16").save_pretrained(folder)
    shapes = list(expected_tensors(architecture).items())
    generator = torch.Generator(place.device).manual_seed(0)
    shard_of: dict[str, str] = {}
    size, share = 0, -(-len(shapes) // SHARDS)
    for number in range(SHARDS):
        held = shapes[number * share : (number + 1) * share]
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        tensors = {name: _tensor(shape, generator) for name, shape in held}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        shard_of |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": shard_of}
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return size


def _tensor(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms near one, matrices as models begin."""
    drawn = torch.randn(shape, generator=generator, device=generator.device) * DEVIATION
    return (drawn if len(shape) > 1 else 1 + drawn).bfloat16().cpu()


def drawn(architecture: Architecture) -> list[Sequenced]:
    """Sequences of random tokens, all but the first of which are scored."""
    random = np.random.default_rng(0)
    return [
        Sequenced(random.integers(0, architecture.vocab_size, length), ((1, length),))
        for length in LENGTHS
    ]


def loaded(folder: Path, architecture: Architecture, place: Place) -> list[Any]:
    """The checkpoint in this package's layers, in bfloat16."""
    form_groups_once()
    models = build_model(
        architecture,
        Layout(),
        spec=place.spec,
        dtype="bfloat16",
        recompute="none",
        log_prob_chunk="auto",
    )
    load_megatron(models, folder)
    return list(models)


@torch.no_grad()
def reference(
    folder: Path, sequences: list[Sequenced], place: Place
) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Log-probs by Transformers' layers in float32, and in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa"
    )
    model = model.to(place.device).eval()
    narrow = [_log_probs(model, sequence, place) for sequence in sequences]
    model = model.float()
    wide = [_log_probs(model, sequence, place) for sequence in sequences]
    return wide, narrow


def _log_probs(model: Any, sequence: Sequenced, place: Place) -> np.ndarray[Any, Any]:
    ids = torch.from_numpy(np.asarray(sequence.token_ids)).to(place.device)[None]
    log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
    found: np.ndarray[Any, Any] = log_probs.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
    return found


def compared(
    ours: list[np.ndarray[Any, Any]],
    wide: list[np.ndarray[Any, Any]],
    narrow: list[np.ndarray[Any, Any]],
) -> dict[str, float]:
    """Differences from float32, in nats: ours in bfloat16, and Transformers' own in bfloat16."""
    told: dict[str, float] = {}
    for name, values in (("ours", ours), ("transformers_bf16", narrow)):
        gaps = np.abs(np.concatenate(values) - np.concatenate(wide))
        told |= {f"{name}_largest": float(gaps.max()), f"{name}_mean": float(gaps.mean())}
    return told | {"log_probs": float(sum(map(len, wide)))}
