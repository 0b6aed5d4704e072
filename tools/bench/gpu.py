"""Everything that is measured on one Hopper GPU, in one command of under six minutes, as JSON.

    python -m tools.bench.gpu --json results.json
    python -m tools.bench.gpu --json results.json --only head,step --seconds 180
    python -m tools.bench.gpu --read results.json          the same as docs/gpu-results.md has it
    python -m tools.bench.gpu --rehearse --json trial.json  on a CPU: measures nothing

Parts: the card's own rates; the log-prob head; training steps in bf16 and FP8; the same by Hugging
Face with Liger's kernels; losses of FP8 trainings beside bf16's; a conversion; vLLM. Each runs in a
process of its own and the file is whole after every row: a part that fails, or that time is over
for, costs no other. Needs nothing from outside.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from megatron_vr.errors import SettingsError
from megatron_vr.parallel.layout import device_defaults
from tools.bench.on_gpu.goals import goals
from tools.bench.on_gpu.parts import LEAST_SECONDS, PARTS, Part
from tools.bench.on_gpu.record import REHEARSAL, Record
from tools.bench.on_gpu.running import ROOT, Bench, run_parts
from tools.bench.on_gpu.shown import draw_curves, markdown, show

PACKAGES = (
    *("torch", "transformer-engine", "megatron-core", "transformers", "liger-kernel", "triton"),
    *("numpy", "safetensors"),
)
SECONDS = 350.0
HOPPER = (9, 0)
# Of all seconds, the last: to end the processes, for the table and the picture.
CLOSING_SHARE = 0.03
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
)


def main() -> None:
    """Measure, or show what was measured."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", type=Path, help="file for the results; logs and a picture go beside it"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for all of it: it ends then, whatever runs"
    )
    parser.add_argument("--only", default="", help="parts, with commas between them")
    parser.add_argument(
        "--markdown", action="store_true", help="end with the table of docs/gpu-results.md"
    )
    parser.add_argument("--read", type=Path, help="measure nothing: print this file as Markdown")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the CPU")
    chosen = parser.parse_args()
    try:
        if chosen.read is not None:
            print(markdown(json.loads(chosen.read.read_text("utf-8"))))
            return
        if chosen.json is None:
            raise SettingsError("--json FILE is missing: where the results are to be written")
        parts = named(chosen.only)
        if not chosen.rehearse:
            check_device()
    except SettingsError as error:
        sys.exit(f"tools.bench.gpu: {error}")
    # Ended by a signal, it ends its processes.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    seconds = chosen.seconds - (time.monotonic() - began)
    _end_after(seconds, chosen.json)
    console = Console(stderr=chosen.markdown)
    content = measure(chosen.json, parts, seconds, chosen.rehearse, console)
    show(content, console)
    if chosen.markdown:
        print(markdown(content), flush=True)
    _draw(content, chosen.json, console)


def _end_after(seconds: float, file: Path) -> None:
    """Then end this process, even where it waits for a device that does not answer; its own
    processes end with it."""

    def end() -> None:
        print(f"tools.bench.gpu: time is over; {file} has what was measured", file=sys.stderr)
        sys.stderr.flush()
        os._exit(124)

    timer = threading.Timer(max(0.0, seconds), end)
    timer.daemon = True
    timer.start()


def measure(
    file: Path,
    parts: Sequence[Part],
    seconds: float,
    rehearse: bool,
    console: Console,
    least_seconds: float = LEAST_SECONDS,
) -> dict[str, Any]:
    """Run `parts` into `file`, what their processes print into a folder beside it; the file's
    content."""
    record = Record(file, about(rehearse))
    cases = sum(len(part.cases) for part in parts)
    with (
        Progress(*COLUMNS, console=console) as progress,
        tempfile.TemporaryDirectory(prefix="megatron-vr-bench-") as folder,
    ):
        told = Told(record, progress, progress.add_task("", total=cases))
        logs = file.with_name(f"{file.stem}-logs")
        bench = Bench(
            record, Path(folder), logs, told, environment(rehearse), rehearse, least_seconds
        )
        run_parts(bench, parts, seconds * (1 - CLOSING_SHARE))
    record.content.update(complete=True, goals=conclusions(record.content))
    record.write()
    return record.content


def _draw(content: Mapping[str, Any], file: Path, console: Console) -> None:
    """The losses as a picture beside `file`; last, since it takes the longest to import."""
    picture = file.with_name(f"{file.stem}-curves.png")
    if draw_curves(content, picture):
        console.print(f"losses: {picture}", markup=False)


class Told:
    """Takes up what the parts tell: conclusions into the record, lines and a bar for people."""

    def __init__(self, record: Record, progress: Progress, task: TaskID) -> None:
        self._record, self._progress, self._task = record, progress, task

    def __call__(self, part: Part, event: Mapping[str, Any]) -> None:
        case, kind = f"{part.name} · {event['case']}", event["event"]
        if kind == "begin":
            self._progress.update(self._task, description=case)
            return
        # After every event, so that a run that is cut off leaves its conclusions too.
        self._record.content["goals"] = conclusions(self._record.content)
        if kind == "row":
            self._print(f"{case} · {event['name']} · {_brief(event['values'])}")
            return
        self._progress.advance(self._task)
        if kind != "done":
            self._print(f"{case} · {kind}: {event['why']}")

    def _print(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


def named(names: str) -> tuple[Part, ...]:
    """The parts that --only names; all without it. Raises SettingsError for another name."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {part.name: part for part in PARTS}
    for name in wanted:
        if name not in known:
            raise SettingsError(f"--only {name} is no part; there are {', '.join(known)}")
    return tuple(part for part in PARTS if not wanted or part.name in wanted)


def check_device() -> None:
    """Raise SettingsError where there is no GPU as new as Hopper's, or no Transformer Engine."""
    import torch

    if not torch.cuda.is_available():
        raise SettingsError(
            "there is no GPU here that torch can use; --rehearse shows on a CPU that the programs "
            "work, and measures nothing"
        )
    capability = torch.cuda.get_device_capability(0)
    if capability < HOPPER:
        raise SettingsError(
            f"{torch.cuda.get_device_name(0)} has compute capability {capability[0]}."
            f"{capability[1]}; what is measured here needs 9.0 (Hopper) or above"
        )
    if importlib.util.find_spec("transformer_engine") is None:
        raise SettingsError("Transformer Engine is not installed: install megatron-vr[gpu]")


def environment(rehearse: bool) -> dict[str, str]:
    """Of the processes: what a rank of a training gets."""
    found = dict(os.environ)
    # One process each, whatever started this one.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        found.pop(name, None)
    # The package need not be installed.
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), found.get("PYTHONPATH"))))
    found |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    if rehearse:
        return found | {"CUDA_VISIBLE_DEVICES": ""}
    return found | device_defaults(found)


def about(rehearse: bool) -> dict[str, Any]:
    """What the file says of itself."""
    return {
        "what": REHEARSAL if rehearse else "measured on one GPU by tools.bench.gpu",
        "rehearsal": rehearse,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m tools.bench.gpu", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **dict(_versions())},
    }


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def conclusions(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The goals as JSON has them."""
    return [{**asdict(goal), "met": goal.met} for goal in goals(content)]


def _brief(values: Mapping[str, Any]) -> str:
    """The numbers of a row that say most, for a line in the terminal."""
    wanted = (
        *("name", "tflops", "tb_per_s", "time_ratio", "memory_ratio", "mib", "layers", "seconds"),
        *("tokens_per_s", "peak_gib", "gb_per_s", "steps", "ours_mean", "transformers_bf16_mean"),
    )
    found = {name: values[name] for name in wanted if name in values}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in found.items()
    )


if __name__ == "__main__":
    main()
