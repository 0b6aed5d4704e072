"""Numbers and rows in words. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_vr.config.settings import Settings
from megatron_vr.report.results import Score

ESTIMATORS = {
    "accuracy": "weights from sampled answers (Acc)",
    "gml": "weights from the geometric mean likelihood (GML)",
    "likelihood": "weights from the likelihood (L)",
}
METRIC_NAMES = {"greedy": "greedy answer", "accuracy": "mean of samples"}


def percent(value: float) -> str:
    """0.731 → `73.1%`."""
    return f"{100 * value:.1f}%"


def decimal(value: float, places: int = 3) -> str:
    """0.7312 → `.731`, 1.0 → `1.000`."""
    text = f"{value:.{places}f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def nats(value: float) -> str:
    """-1.2345 → `−1.23`."""
    return f"{value:.2f}".replace("-", "−")


def points(difference: Score) -> str:
    """A difference of shares as `+5.8 ± 1.2 points`."""
    return f"{signed(difference.value)} ± {100 * difference.error:.1f} points"


def signed(share: float) -> str:
    """A difference of shares in percentage points: 0.058 → `+5.8`."""
    return f"{100 * share:+.1f}".replace("-", "−")


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def amount(count: int, thing: str) -> str:
    """`1 question`, `1,500 questions`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def picture_name(name: str, iteration: int, iterations: int) -> str:
    """File name of a plot without its ending."""
    return name if iterations == 1 else f"iteration-{iteration}-{name}"


def describe(settings: Settings) -> str:
    """What a row of the results table learns from."""
    if settings.traces.sampler == "none":
        return "supervised: reference traces only"
    if settings.traces.sampler == "policy":
        how = settings.weights.normalise
        even = (
            "each question weighs the same" if how == "question" else "each rollout weighs the same"
        )
        return f"rejection sampling: the policy's own accepted rollouts, {even}"
    hint = (
        "posterior traces" if settings.posterior.hint else "posterior traces sampled without hint"
    )
    ratio = {
        "geometric-mean": "",
        "sequence": ", full-sequence ratio",
        "none": ", no ratio",
    }[settings.weights.ratio]
    even = "" if settings.weights.normalise == "question" else ", not normalised"
    return f"{hint}, {ESTIMATORS[settings.weights.estimator]}{ratio}{even}"


def policy_name(iteration: int) -> str:
    """π with its iteration."""
    return f"π{str(iteration).translate(str.maketrans('0123456789', '₀₁₂₃₄₅₆₇₈₉'))}"
