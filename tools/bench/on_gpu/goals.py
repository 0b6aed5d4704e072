"""What was measured against what was wanted. Pure: from the benchmark's JSON alone."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from megatron_vr.training.compare_curves import compare
from tools.bench.on_gpu.parts import PARTS

FP8: Final = ("tensorwise", "blockwise", "delayed")
LARGEST_GAP = 0.005
# Curves that were cut off are compared as far as both go, but not before.
FEWEST_STEPS = 100

_WANTS: Final = {"≤": operator.le, "≥": operator.ge, "<": operator.lt}


@dataclass(frozen=True)
class Goal:
    """One line of the results: `value` against `goal` ("≥ 1.3"), or for itself where it is "".

    No other has its `name`.
    """

    part: str
    name: str
    value: float
    goal: str = ""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is; None without a goal."""
        if not self.goal:
            return None
        sign, limit = self.goal.split()
        return bool(_WANTS[sign](self.value, float(limit)))


@dataclass(frozen=True)
class Measured:
    """The JSON's rows by part, case and name."""

    content: Mapping[str, Any]

    def row(self, part: str, case: str, name: str) -> Mapping[str, Any] | None:
        """A row, None where it was not measured."""
        found = self.content["parts"].get(part, {}).get("cases", {}).get(case, {})
        row: Mapping[str, Any] | None = found.get("rows", {}).get(name)
        return row

    def rows(self, part: str, case: str) -> Mapping[str, Any]:
        """All rows of a case."""
        found = self.content["parts"].get(part, {}).get("cases", {}).get(case, {})
        rows: Mapping[str, Any] = found.get("rows", {})
        return rows

    def as_deep(self, part: str, case: str, name: str, other: Mapping[str, Any]) -> Any:
        """The row of that name, or that of fewer layers, with as many as `other`; or None."""
        for found, row in self.rows(part, case).items():
            if found.split(", smaller ")[0] == name and _depth(row) == _depth(other):
                return row
        return None


def _depth(row: Mapping[str, Any]) -> int:
    """The layers that were measured."""
    layers: int = row["layers"] if "layers" in row else row["from_layers"]
    return layers


def goals(content: Mapping[str, Any]) -> list[Goal]:
    """Of everything that was measured; nothing of a rehearsal."""
    if content["rehearsal"]:
        return []
    measured = Measured(content)
    lines = (_rates, _heads, _steps, _fp8, _rivals, _curves, _conversion, _vllm)
    return [goal for each in lines for goal in each(measured)]


def _rates(measured: Measured) -> Iterator[Goal]:
    for case, called in (("bf16 products", "bf16"), ("fp8 products", "FP8")):
        for name, row in measured.rows("rate", case).items():
            yield Goal(
                "rate", f"{called} product, {name}: TFLOP/s", row["tflops"], "", row["shape"]
            )
    copy = measured.row("rate", "memory copy", "copy")
    if copy:
        yield Goal("rate", "copy within memory, read and written: TB/s", copy["tb_per_s"])


def _heads(measured: Measured) -> Iterator[Goal]:
    (part,) = (part for part in PARTS if part.name == "head")
    for case in part.cases:
        row = measured.row("head", case, "head")
        if row is None:
            continue
        goal = "≤ 1" if case.startswith("Liger") else ""
        times = f"{1e3 * row['ours_s']:.1f} ms, {1e3 * row['rival_s']:.1f} ms; {row['shape']}"
        sizes = f"{row['ours_mib']:.0f} MiB, {row['rival_mib']:.0f} MiB"
        rival, width = case.rsplit(" ", 1)
        if "Liger" in case:
            sizes += f" ({row['rival_without_its_weight_gradient_mib']:.0f} without its gradient)"
        for what, ratio, detail in (
            ("time", "time_ratio", times),
            ("memory", "memory_ratio", sizes),
        ):
            title = f"head's {what} over {rival}'s, width {width}"
            yield Goal("head", title, row[ratio], goal, detail)


def _steps(measured: Measured) -> Iterator[Goal]:
    rate = measured.row("rate", "bf16 products", "square")
    (part,) = (part for part in PARTS if part.name == "step")
    for case in part.cases:
        for name, row in measured.rows("step", case).items():
            if "tflops" not in row:
                continue
            whole = "computed_for_layers" in row
            depth = (
                f"all {row['computed_for_layers']} layers, computed from {row['from_layers']}"
                if whole
                else f"{row['layers']} of {row['layers_of_shape']} layers"
            )
            what = f"8192, {name}" if whole else name
            detail = f"{row['tokens_per_s']:.0f} tokens/s, {row['tflops']:.0f} TFLOP/s, {depth}"
            if "peak_gib" in row:
                detail += f", {row['peak_gib']:.1f} GiB"
            if rate is None:
                yield Goal("step", f"{case}, {what}: tokens/s", row["tokens_per_s"], "", detail)
                continue
            goal = "≥ 0.5" if (case, name) == ("8b bf16", "8192") else ""
            share = row["tflops"] / rate["tflops"]
            yield Goal("step", f"{case}, {what}: share of the bf16 rate", share, goal, detail)


def _fp8(measured: Measured) -> Iterator[Goal]:
    for shape in ("8b", "4b"):
        for recipe in FP8:
            for name, called in (("8192", "measured"), ("all layers", "computed for all layers")):
                fp8 = measured.row("step", f"{shape} {recipe}", name)
                bf16 = fp8 and measured.as_deep("step", f"{shape} bf16", name, fp8)
                if not bf16 or not fp8:
                    continue
                value = fp8["tokens_per_s"] / bf16["tokens_per_s"]
                goal = "≥ 1.3" if (shape, name) == ("8b", "8192") else ""
                detail = f"{fp8['tokens_per_s']:.0f} and {bf16['tokens_per_s']:.0f}"
                title = f"{shape} {recipe}: tokens/s over bf16, {called}"
                yield Goal("step", title, value, goal, detail)


def _rivals(measured: Measured) -> Iterator[Goal]:
    for case in ("8192", "traces"):
        rows = measured.rows("rival", case)
        ours = rows.get("ours")
        if ours is None:
            continue
        for name, row in rows.items():
            if name == "ours" or row.get("layers") != ours["layers"]:
                continue
            goal = "≥ 1.5" if "float32" in name else ""
            detail = f"{ours['seconds']:.3f} s, {row['seconds']:.3f} s, {ours['layers']} layers"
            if "peak_gib" in row:
                detail += f", {ours['peak_gib']:.1f} and {row['peak_gib']:.1f} GiB"
            title = f"tokens/s over Transformers + Liger, {case}, {name}"
            yield Goal("rival", title, row["seconds"] / ours["seconds"], goal, detail)


def _curves(measured: Measured) -> Iterator[Goal]:
    bf16 = measured.row("curves", "bf16", "curve")
    if bf16 is None:
        return
    for case in (*FP8, "bf16 in other packs"):
        row = measured.row("curves", case, "curve")
        steps = min(bf16["steps"], row["steps"]) if row else 0
        if row is None or steps < min(FEWEST_STEPS, bf16["of_steps"]):
            continue
        reference, tried = (
            [float(loss) for loss in each["losses"][:steps]] for each in (bf16, row)
        )
        verdict = compare(reference, tried, LARGEST_GAP)
        goal = f"< {LARGEST_GAP}" if case in FP8 else ""
        # A loss that was lost on the way is no success, whatever came after.
        gap = math.nan if verdict.gap is None or verdict.lost is not None else abs(verdict.gap)
        detail = f"after {steps} steps: {verdict.tried} and {verdict.reference}"
        detail += f" over the last {verdict.window}; {row['skipped']} steps skipped"
        if verdict.lost is not None:
            detail += f", not finite at step {verdict.lost}"
        yield Goal("curves", f"{case}: gap of the loss to bf16's", gap, goal, detail)


def _conversion(measured: Measured) -> Iterator[Goal]:
    for name, row in measured.rows("convert", "4b").items():
        if "gb_per_s" in row:
            detail = f"{row['seconds']:.1f} s, {row['gb']:.1f} GB"
            yield Goal("convert", f"4b shape, {name}: GB/s", row["gb_per_s"], "", detail)
        else:
            other = row["transformers_bf16_mean"]
            detail = f"mean {row['ours_mean']:.2g} and {other:.2g} nats from float32"
            title = "4b shape: error of log-probs over Transformers' in bf16"
            yield Goal("convert", title, row["ours_mean"] / other, "", detail)
            title = "4b shape: largest difference of log-probs from float32's, nats"
            detail = f"Transformers' in bf16 {row['transformers_bf16_largest']:.2g}"
            yield Goal("convert", title, row["ours_largest"], "", detail)


def _vllm(measured: Measured) -> Iterator[Goal]:
    row = measured.row("vllm", "load", "vLLM")
    if row is not None:
        yield Goal("vllm", "FP8 release, seconds until vLLM wrote tokens", row["seconds"])
