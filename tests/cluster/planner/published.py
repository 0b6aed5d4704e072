"""Predictions for what others published, and the tables of docs/planner.md that show both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.compute import Costs, Micro, Nodes
from megatron_vr.cluster.planner.hardware import DEVICES
from megatron_vr.cluster.planner.rates import DECODE, TRAIN
from megatron_vr.cluster.planner.sampling import Asked, Server, sampling_seconds
from megatron_vr.cluster.planner.steps import Batch, Lengths, scoring_step, training_step
from megatron_vr.config.fp8_settings import Fp8Settings
from megatron_vr.models.architecture import Architecture, parse_architecture
from megatron_vr.parallel.layout import Layout

FILE = Path(__file__).with_name("published.yaml")
PROMPT = 300


@cache
def published() -> dict[str, Any]:
    """The file's content."""
    content: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content


@dataclass(frozen=True)
class Compared:
    """A published figure and its prediction; `cells` describe the point in its table."""

    cells: tuple[str, ...]
    published: float
    predicted: float
    calibrates: bool

    @property
    def error(self) -> float:
        """Of the prediction, relative to what was published."""
        return self.predicted / self.published - 1


def architecture(name: str) -> Architecture:
    """The model called `name` in the file."""
    fields = published()["models"][name]
    family = "qwen3" if "head_dim" in fields else "llama"
    usual = {
        "model_type": family,
        "architectures": ["Qwen3ForCausalLM" if family == "qwen3" else "LlamaForCausalLM"],
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }
    return parse_architecture({**usual, **fields}, name)


def trainings() -> Iterator[Compared]:
    """Tokens a second and GPU of the published trainings."""
    for point in published()["training"]:
        n, micro = point["length"], point["micro"]
        layout = _layout(point)
        case = Case(
            architecture(point["model"]),
            layout,
            point["gpus"],
            n * micro,
            fp8=Fp8Settings(recipe="tensorwise") if point["fp8"] else None,
            recompute=point["recompute"],
            overlap=point["overlap"],
        )
        costs = Costs(case, Nodes(DEVICES[point["device"]], 8), overlaps_tensor=True)
        count = point["batch"] // case.data // micro
        batch = Batch(
            point["batch"],
            Lengths(n, n, n),
            count,
            Micro(micro * n, micro * n * (n + 1) / 2, micro * n),
        )
        splits = f"TP{layout.tensor} PP{layout.pipeline} CP{layout.context} DP{case.data}"
        if layout.virtual_pipeline:
            splits += f" VPP{layout.virtual_pipeline}"
        cells = (
            *(point["model"], f"{point['gpus']} × {point['device']}"),
            *("FP8" if point["fp8"] else "bf16", f"{n:,}", splits, point["recompute"]),
            point["source"],
        )
        predicted = training_step(costs, batch).tokens_per_gpu
        yield Compared(cells, point["tokens_per_gpu"], predicted, point["calibrates"])


def samplings() -> Iterator[Compared]:
    """Tokens a second of the published servers."""
    for point in published()["sampling"]:
        running, tokens = point["running"], point["tokens"]
        server = Server(architecture(point["model"]), DEVICES["h100"], point["gpus"], 1024)
        context = PROMPT + tokens * (1 + point["spread"] ** 2) / 2
        each = server.step(running, context) / running + server.prefill(PROMPT) / tokens
        cells = (
            *(point["model"], f"{point['gpus']} × h100", point["task"]),
            *(f"{tokens:,}", f"{running:.0f}"),
        )
        yield Compared(cells, point["tokens_per_second"], 1 / each, point["calibrates"])


def steps() -> Iterator[Compared]:
    """Seconds of the published steps of reinforcement learning."""
    for point in published()["steps"]:
        model, gpus = architecture(point["model"]), point["gpus"]
        tokens, spread, count = point["tokens"], point["spread"], point["sequences"]
        lengths = Lengths(tokens, tokens - PROMPT, tokens * (1 + spread**2))
        layout = _layout(point | {"context": 1, "virtual": None})
        case = Case(model, layout, gpus, 4096, recompute=point["recompute"])
        costs = Costs(case, Nodes(DEVICES["h100"], 8))
        batch = Batch.of(case, count, lengths)
        server = Server(model, DEVICES["h100"], point["servers"], 256)
        asked = Asked(count, PROMPT, tokens - PROMPT, 4096, spread, count / 32 * PROMPT)
        seconds = sampling_seconds(server, gpus // point["servers"], asked)
        seconds += training_step(costs, batch).seconds + 2 * scoring_step(costs, batch).seconds
        cells = (point["model"], f"{gpus} × h100", f"{count:,} × {tokens:,}")
        yield Compared(cells, point["seconds"], seconds, calibrates=False)


def _layout(point: dict[str, Any]) -> Layout:
    tensor = point["tensor"]
    return Layout(tensor, point["pipeline"], point["context"], point["virtual"], tensor > 1)


def table(head: Sequence[str], points: Sequence[Compared]) -> str:
    """The points as a table in Markdown."""
    names = [*head, "published", "predicted", "error", "for fitting"]
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    for point in points:
        cells = [*point.cells, _number(point.published), _number(point.predicted)]
        cells += [f"{point.error:+.0%}", "yes" if point.calibrates else "no"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def devices() -> str:
    """The devices' figures as a table in Markdown."""
    lines = ["| | memory GiB | bf16 TFLOP/s | FP8 | memory TB/s | NVLink GB/s | network GB/s |"]
    lines.append("|" + "---|" * 7)
    for name, device in DEVICES.items():
        fp8 = "–" if device.fp8_tflops is None else f"{device.fp8_tflops:g}"
        figures = (device.memory_tbs, device.nvlink_gbs, device.network_gbs)
        cells = [f"`{name}`", f"{device.memory_gib:g}", f"{device.peak('bfloat16') / 1e12:g}", fp8]
        lines.append(f"| {' | '.join(cells + [f'{figure:g}' for figure in figures])} |")
    return "\n".join(lines)


def rates() -> str:
    """The shares of the devices' figures that are reached, as a table in Markdown."""
    told = (
        ("large matrix products, bfloat16", TRAIN.product, "of the peak"),
        ("the same in FP8", TRAIN.fp8_product, "of FP8's peak"),
        ("attention, forward", TRAIN.attention_forward, "of the bfloat16 peak"),
        ("attention, backward", TRAIN.attention_backward, "of the bfloat16 peak"),
        ("memory", TRAIN.memory, "of its bandwidth"),
        ("NVLink", TRAIN.nvlink, "of its bandwidth"),
        ("network", TRAIN.network, "of its bandwidth"),
        ("decoding: weights", DECODE.weights, "of the memory's bandwidth"),
        ("decoding: keys and values", DECODE.cache, "of the memory's bandwidth"),
        ("decoding: products", DECODE.product, "of the peak"),
        ("reading prompts", DECODE.prefill, "of the peak"),
    )
    lines = ["| | reached | |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {share:.2f} | {of} |" for name, share, of in told)])


def tables() -> dict[str, str]:
    """Every table of the page by its name."""
    layout = ("model", "GPUs", "products", "length", "layout", "recompute", "source")
    return {
        "devices": devices(),
        "rates": rates(),
        "training": table(layout, list(trainings())),
        "sampling": table(("model", "GPUs", "task", "tokens", "at once"), list(samplings())),
        "steps": table(("model", "GPUs", "sequences × tokens"), list(steps())),
    }


if __name__ == "__main__":
    print("\n\n".join(tables().values()))
