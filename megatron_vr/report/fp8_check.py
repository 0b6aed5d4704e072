"""What a comparison of FP8 with bfloat16 found: a table on the terminal, and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from megatron_vr.report.plots.lines import Line, LinePanel, line_panels
from megatron_vr.report.plots.style import MAIN, MUTED, OTHERS, START
from megatron_vr.training.checked import Checked
from megatron_vr.training.compare_curves import trailing_gaps

ROWS = 10  # steps shown
UNKNOWN = "–"
FP8_ROWS = {
    "fp8_input_amax": "largest input",
    "fp8_weight_amax": "largest weight",
    "fp8_gradient_amax": "largest gradient",
    "fp8_range_least": "range used, least",
    "fp8_range_most": "range used, most",
    "fp8_saturated": "tensors cut off",
    "fp8_broken": "tensors broken",
}


def print_check(checked: Checked, console: Console | None = None) -> None:
    """The losses side by side, then what else the two halves told."""
    reference, tried, verdict = checked.reference, checked.tried, checked.verdict
    table = Table(title=f"{tried.name} beside {reference.name}", box=SIMPLE_HEAD)
    for head in ("", reference.name, tried.name, "gap"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    gaps = trailing_gaps(reference.losses, tried.losses)
    for step in shown_steps(verdict.steps):
        losses = (_number(half.losses[step - 1]) for half in (reference, tried))
        table.add_row(f"loss, step {step}", *losses, _share(gaps[step - 1]))
    table.add_section()
    means = (_number(verdict.reference), _number(verdict.tried), _share(verdict.gap))
    table.add_row(f"mean loss, last {verdict.window}", *means)
    table.add_row(
        "tokens per second",
        f"{reference.tokens_per_second:,.0f}",
        f"{tried.tokens_per_second:,.0f}",
        f"{checked.speedup:.2f} ×",
    )
    table.add_row("peak memory (GiB)", *(f"{h.peak_memory_gib:.1f}" for h in (reference, tried)))
    table.add_row("steps not finite", *(str(len(h.not_finite)) for h in (reference, tried)))
    for title, value in _fp8_rows(checked):
        table.add_row(title, UNKNOWN, value)
    (console or Console()).print(table)


def shown_steps(steps: int) -> list[int]:
    """The first step, the last, and others at equal distances."""
    return sorted({1, *(max(1, round(steps * row / ROWS)) for row in range(1, ROWS + 1))})


def draw_check(checked: Checked) -> bytes:
    """PNG with both losses, and with their gap between the lines that it must not cross."""
    reference, tried = checked.reference, checked.tried
    losses = [
        _line(reference.name, START, reference.losses),
        # Dashed, so that curves that agree are both seen.
        replace(_line(tried.name, MAIN, tried.losses), dashed=True),
    ]
    gaps = trailing_gaps(reference.losses, tried.losses)
    gap = _line("gap", OTHERS[3], [math.nan if found is None else 100 * found for found in gaps])
    bound = 100 * checked.largest
    allowed = [
        replace(_line(f"allowed: ± {bound:g} %", MUTED, [side] * len(gaps)), dashed=True)
        for side in (bound, -bound)
    ]
    return line_panels(
        [
            LinePanel("Loss", losses, "step", "weighted loss (nats per token)"),
            LinePanel("Gap", [gap, *allowed], "step", "% of the loss, mean of 10 steps"),
        ]
    )


def _line(name: str, colour: str, values: Sequence[float]) -> Line:
    """The finite points of a curve."""
    points = [(step, value) for step, value in enumerate(values, 1) if math.isfinite(value)]
    return Line(name, colour, [x for x, _ in points], [y for _, y in points])


def _fp8_rows(checked: Checked) -> Iterator[tuple[str, str]]:
    """FP8's own numbers, of the last step."""
    for name, title in FP8_ROWS.items():
        if name in checked.tried.fp8:
            yield title, f"{checked.tried.fp8[name]:.3g}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.4f}"


def _share(gap: float | None) -> str:
    return UNKNOWN if gap is None else f"{gap:+.2%}"
