"""A training's first steps beside the same steps in another precision, and what follows. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_vr.training.compare_curves import Verdict, compare
from megatron_vr.training.first_steps import FirstSteps

REMEDY = (
    "raise model.fp8.last_layers_bf16 or first_layers_bf16, take another model.fp8.recipe, or "
    "train without model.fp8"
)


@dataclass(frozen=True)
class Checked:
    """The same steps twice; `largest` is the gap that is allowed, as a share of the loss."""

    reference: FirstSteps
    tried: FirstSteps
    largest: float

    @property
    def verdict(self) -> Verdict:
        """Of the losses."""
        return compare(self.reference.losses, self.tried.losses, self.largest)

    @property
    def speedup(self) -> float:
        """Tokens per second of the tried steps over the reference's."""
        return self.tried.tokens_per_second / self.reference.tokens_per_second

    @property
    def fault(self) -> str | None:
        """Why the tried precision is not to be trained in, in a sentence; None where it is."""
        verdict, tried, reference = self.verdict, self.tried, self.reference
        lost = sorted({*tried.not_finite} - {*reference.not_finite})
        if lost:
            return (
                f"{tried.name}: loss or gradient is not finite at step {lost[0]} of "
                f"{verdict.steps} ({len(lost)} such steps), and is in {reference.name}; {REMEDY}"
            )
        if verdict.gap is None:
            return (
                f"{reference.name}: the mean loss of the last {verdict.window} steps is not finite "
                "or 0, so nothing can be compared with it; lower optimizer.learning_rate"
            )
        if not verdict.passed:
            return (
                f"{tried.name} is {verdict.gap:+.2%} off {reference.name}, and {self.largest:.2%} "
                f"is allowed (--fp8-gap {self.largest:g}): mean loss {verdict.tried:.4f} against "
                f"{verdict.reference:.4f} over the last {verdict.window} of {verdict.steps} "
                f"steps; {REMEDY}"
            )
        return None

    def as_json(self) -> dict[str, Any]:
        """For a file that is read by `from_json`, and by people."""
        return {
            "passed": self.fault is None,
            "fault": self.fault,
            "verdict": asdict(self.verdict),
            "speedup": self.speedup,
            "largest": self.largest,
            "reference": self.reference.as_json(),
            "tried": self.tried.as_json(),
        }

    @staticmethod
    def from_json(content: dict[str, Any]) -> Checked:
        """What `as_json` gave. Raises KeyError or TypeError for anything else."""
        return Checked(
            FirstSteps.from_json(content["reference"]),
            FirstSteps.from_json(content["tried"]),
            float(content["largest"]),
        )
