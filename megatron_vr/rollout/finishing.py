"""When a generation ends, decided on token ids."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_vr.rollout.engine import FinishReason, Sampling


class FinishRule:
    """The ending conditions of `sampling`. A marker outranks a stop token, and both the limit."""

    def __init__(self, sampling: Sampling) -> None:
        self._stop = sampling.stop
        self._sequences = [list(sequence) for sequence in sampling.stop_sequences]
        self._stop_ids = frozenset(sampling.stop_token_ids)
        self._limit = sampling.max_new_tokens

    def reason(self, token_ids: Sequence[int]) -> FinishReason | None:
        """Why the generated `token_ids` end with their last token, or None when they go on.

        To be asked after each token, so that only the end of `token_ids` needs a look.
        """
        if self._stop is not None and self._stop.completes(token_ids[-self._stop.max_tail :]):
            return "stop"
        for sequence in self._sequences:
            if sequence == list(token_ids[-len(sequence) :]):
                return "stop"
        if token_ids[-1] in self._stop_ids:
            return "end"
        return "length" if len(token_ids) >= self._limit else None
