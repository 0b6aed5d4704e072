"""The parts of the benchmark, the cases of each, and when each of them must have ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

# A process that is given less than this would hardly have imported what it needs.
LEAST_SECONDS = 15.0


@dataclass(frozen=True)
class Part:
    """One process at a time measures `cases` in this order, the most wanted first.

    `module` has `measure(case, place)`. `share` of the whole time is this part's, and what earlier
    parts left. A case that runs out of memory is tried again with fewer layers where it `shrinks`;
    before it, that of the same first word which ends with `reference`: what it is compared with.
    """

    name: str
    module: str
    cases: tuple[str, ...]
    share: float
    shrinks: bool = False
    reference: str = ""

    def compared_with(self, case: str) -> str | None:
        """The case that `case` is compared with, if it is another."""
        found = f"{case.split()[0]} {self.reference}"
        return found if found in self.cases and found != case else None


PARTS = (
    Part(
        "rate",
        "tools.bench.on_gpu.rate",
        ("card", "bf16 products", "fp8 products", "memory copy"),
        20,
    ),
    Part(
        "head",
        "tools.bench.on_gpu.heads",
        (
            "Liger 4096",
            "Liger 2560",
            "chunks 4096",
            "dense 2560",
            "weighted Liger 4096",
            "dense 4096",
            "Megatron 4096",
        ),
        35,
    ),
    Part(
        "step",
        "tools.bench.on_gpu.steps",
        (
            "8b bf16",
            "8b tensorwise",
            "8b blockwise",
            "8b delayed",
            "4b bf16",
            "4b tensorwise",
            "8b bf16 lengths",
            "8b bf16 kernels",
            "8b tensorwise kernels",
            "8b tensorwise lengths",
            "4b blockwise",
            "4b delayed",
        ),
        90,
        shrinks=True,
        reference="bf16",
    ),
    Part("rival", "tools.bench.on_gpu.rival", ("8192", "traces"), 60, shrinks=True),
    Part(
        "curves",
        "tools.bench.on_gpu.curves",
        ("bf16", "tensorwise", "blockwise", "delayed", "bf16 in other packs"),
        100,
    ),
    Part("convert", "tools.bench.on_gpu.convert", ("4b",), 55),
    Part("vllm", "tools.bench.on_gpu.vllm", ("load",), 10),
)


def ends(parts: Sequence[Part], begin: float, seconds: float) -> list[float]:
    """When each of `parts` must have ended that share `seconds` from `begin` on. One that needs
    less than its share leaves the rest to those after it."""
    whole = sum(part.share for part in parts)
    return [begin + seconds * part / whole for part in accumulate(part.share for part in parts)]
