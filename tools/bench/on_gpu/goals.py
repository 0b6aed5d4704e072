"""What was measured against what was wanted. Pure: from the benchmark's JSON alone."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from megatron_vr.training.compare_curves import compare
from tools.bench.on_gpu.parts import PARTS

FP8: Final = ("tensorwise", "blockwise", "delayed")
LARGEST_GAP = 0.005

_WANTS: Final = {"≤": operator.le, "≥": operator.ge, "<": operator.lt}


@dataclass(frozen=True)
class Goal:
    """One line of the results: `value` against `goal` ("≥ 1.3"), or for itself where it is ""."""

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


def goals(content: Mapping[str, Any]) -> list[Goal]:
    """Of everything that was measured; nothing of a rehearsal."""
    if content["rehearsal"]:
        return []
    measured = Measured(content)
    lines = (_rates, _heads, _steps, _fp8, _rivals, _curves, _conversion)
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
        rival = case.rsplit(" ", 1)[0]
        if "Liger" in case:
            sizes += f" ({row['rival_without_its_weight_gradient_mib']:.0f} without its gradient)"
        yield Goal("head", f"head's time over {rival}'s", row["time_ratio"], goal, times)
        yield Goal("head", f"head's peak memory over {rival}'s", row["memory_ratio"], goal, sizes)


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
            what = "8192" if whole else name
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
                bf16 = measured.row("step", f"{shape} bf16", name)
                fp8 = measured.row("step", f"{shape} {recipe}", name)
                if not bf16 or not fp8 or bf16.get("layers") != fp8.get("layers"):
                    continue
                value = fp8["tokens_per_s"] / bf16["tokens_per_s"]
                goal = "≥ 1.3" if (shape, name) == ("8b", "8192") else ""
                detail = f"{fp8['tokens_per_s']:.0f} and {bf16['tokens_per_s']:.0f}; {called}"
                title = f"{shape} {recipe}: tokens/s over bf16"
                yield Goal("step", title, value, goal, detail)


def _rivals(measured: Measured) -> Iterator[Goal]:
    for case in ("8192", "traces"):
        rows = measured.rows("rival", case)
        ours = rows.get("ours")
        if ours is None:
            continue
        for name, row in rows.items():
            if name == "ours" or row["layers"] != ours["layers"]:
                continue
            goal = "≥ 1.5" if "float32" in name else ""
            detail = f"{ours['seconds']:.3f} s, {row['seconds']:.3f} s, {ours['layers']} layers"
            if "peak_gib" in row:
                detail += f", {ours['peak_gib']:.1f} and {row['peak_gib']:.1f} GiB"
            title = f"tokens/s over Transformers + Liger, {case}, {name}"
            yield Goal("rival", title, row["seconds"] / ours["seconds"], goal, detail)


def _curves(measured: Measured) -> Iterator[Goal]:
    bf16 = measured.row("curves", "bf16", "curve")
    if bf16 is None or bf16["steps"] != bf16["of_steps"]:
        return
    reference = [float(loss) for loss in bf16["losses"]]
    for case in (*FP8, "bf16 in other packs"):
        row = measured.row("curves", case, "curve")
        if row is None or row["steps"] != row["of_steps"]:
            continue
        verdict = compare(reference, [float(loss) for loss in row["losses"]], LARGEST_GAP)
        goal = f"< {LARGEST_GAP}" if case in FP8 else ""
        gap = float("nan") if verdict.gap is None else abs(verdict.gap)
        detail = f"losses {verdict.tried} and {verdict.reference} over the last {verdict.window}"
        title = f"{case}: gap of the loss to bf16's after {verdict.steps} steps"
        yield Goal("curves", title, gap, goal, detail)


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
