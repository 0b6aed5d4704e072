"""An FP8 release as `megatron-vr quantize` writes it, loaded and run by vLLM where that is here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tools.bench.on_gpu.place import NotHere, Place, Row

# What vLLM's FP8 kernels take: widths that are multiples of 16.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
_LOAD = """
import json, sys
from vllm import LLM, SamplingParams
engine = LLM(
    model=sys.argv[1], enforce_eager=True, max_model_len=128, gpu_memory_utilization=0.3, seed=0
)
made = engine.generate(["S c0 G c3 W c7"], SamplingParams(temperature=0.0, max_tokens=8))
print(json.dumps({"tokens": len(made[0].outputs[0].token_ids)}))
"""


def measure(case: str, place: Place) -> Iterator[Row]:
    """The one case of the part `vllm`. Raises NotHere where vLLM or modelopt is not installed."""
    for name, called in (("vllm", "vLLM"), ("modelopt", "nvidia-modelopt")):
        if importlib.util.find_spec(name) is None:
            raise NotHere(f"{called} is not installed here")
    from megatron_vr.problems.toy_tokenizer import make_tokenizer
    from tools.bench.harness import write_model

    with tempfile.TemporaryDirectory(dir=place.folder) as name:
        source, made = Path(name) / "hf", Path(name) / "fp8"
        make_tokenizer().save_pretrained(write_model(source, SHAPE))
        texts = Path(name) / "texts.jsonl"
        texts.write_text(json.dumps({"text": "S c0 G c3 W c7"}) + "\n", encoding="utf-8")
        words = ["quantize", str(source), str(made), "--calibration", str(texts)]
        yield _run("quantize", [sys.executable, "-m", "megatron_vr", *words])
        yield _run("vLLM", [sys.executable, "-c", _LOAD, str(made)])


def _run(name: str, command: list[str]) -> Row:
    began = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1]}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    return Row(name, {"seconds": time.perf_counter() - began, "said": last[:200]})
