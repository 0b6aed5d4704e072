"""What is installed here, what it is for, and what goes without it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from megatron_vr.models.parts import find_parts, installed
from megatron_vr.report.doctor_gpu import gpu_findings
from megatron_vr.report.finding import Finding


@dataclass(frozen=True)
class Part:
    """A package by its distribution names, the first installed of which counts."""

    name: str
    distributions: tuple[str, ...]
    needed_for: str
    without_it: str


NOTHING_RUNS = "nothing runs"
SERVERS = "rollout servers (best in an environment of their own)"

NEEDED = (
    Part("megatron-core", ("megatron-core",), "models, training, scoring", NOTHING_RUNS),
    Part("transformers", ("transformers",), "tokenizers, Hugging Face folders", NOTHING_RUNS),
)

OPTIONAL = (
    Part("vllm", ("vllm",), SERVERS, "the embedded engine samples"),
    Part("sglang", ("sglang",), SERVERS, "the embedded engine samples"),
    Part("nvidia-modelopt", ("nvidia-modelopt",), "FP8 release checkpoints", "none of those"),
    Part("wandb", ("wandb",), "report.wandb_project", "leave it unset"),
    Part("tensorboard", ("tensorboard",), "report.tensorboard", "set it to false"),
    Part("math-verify", ("math-verify",), "judging mathematics", "no problems of kind math"),
    Part(
        "reasoning-gym",
        ("reasoning-gym",),
        "sources of kind reasoning-gym",
        "the other sources",
    ),
)


def examine() -> list[Finding]:
    """Every part that the package can use, installed or not; imports torch, and Transformer Engine
    where there is a GPU."""
    return [
        Finding("python", platform.python_version(), "everything", NOTHING_RUNS),
        Finding("torch", installed("torch"), "everything", NOTHING_RUNS),
        *(_finding(part) for part in NEEDED),
        Finding("GPUs", _gpus(), "models beyond a toy's size", "everything runs on the CPU"),
        *gpu_findings(find_parts()),
        *(_finding(part) for part in OPTIONAL),
        _bubblewrap(),
    ]


def print_findings(findings: list[Finding], console: Console | None = None) -> None:
    """A table of what is there and what is not."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("part", overflow="fold", min_width=20)
    for head in ("found", "needed for", "without it"):
        table.add_column(head, overflow="fold")
    for finding in findings:
        found = Text(finding.found, "green") if finding.found else Text("missing", "yellow")
        table.add_row(finding.name, found, finding.needed_for, finding.without_it)
    (console or Console()).print(table)


def _finding(part: Part) -> Finding:
    return Finding(part.name, _first(part), part.needed_for, part.without_it)


def _first(part: Part) -> str | None:
    found = (installed(name) for name in part.distributions)
    return next((there for there in found if there is not None), None)


def _bubblewrap() -> Finding:
    path = shutil.which("bwrap")
    found = None
    if path is not None:
        asked = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        found = asked.stdout.strip().removeprefix("bubblewrap ") or "does not start"
    needed = "judging programs that models write (LiveCodeBench)"
    return Finding("bubblewrap", found, needed, "no problems of kind code")


def _gpus() -> str | None:
    """Names of the devices torch can use, and the CUDA it was built for."""
    import torch

    if not torch.cuda.is_available():
        return None
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    counted = {name: names.count(name) for name in dict.fromkeys(names)}
    told = ", ".join(f"{count} × {name}" for name, count in counted.items())
    return f"{told} (CUDA {torch.version.cuda})"
