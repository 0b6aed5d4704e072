"""Which requests are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_vr.errors import SettingsError
from megatron_vr.rollout.engine import Request


@dataclass(frozen=True)
class BatchLimits:
    """At most `rows` requests at once, and at most `tokens` cache positions (rows x longest)."""

    rows: int = 1024
    tokens: int = 2**18

    def __post_init__(self) -> None:
        if self.rows < 1 or self.tokens < 1:
            raise SettingsError(
                f"batch_size is {self.rows} and batch_tokens is {self.tokens}; set both at least 1"
            )


def plan_batches(
    requests: Sequence[Request], max_new_tokens: int, limits: BatchLimits
) -> list[list[int]]:
    """Indices into `requests`, each in exactly one batch.

    Prompts of like length come together, so that little is padded, and equal prompts too, so
    that each is read once per batch. A request too long for `limits.tokens` has its own batch.
    """
    by_length = sorted(
        range(len(requests)),
        key=lambda i: (len(requests[i].prompt_ids), requests[i].prompt_ids, i),
    )
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in by_length:
        positions = len(requests[index].prompt_ids) + max_new_tokens
        full = len(batch) == limits.rows or (len(batch) + 1) * positions > limits.tokens
        if batch and full:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch] if batch else batches
