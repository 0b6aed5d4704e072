"""One batch of prompts on its way through a Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from megatron_vr.rollout.cache import roomy_cache


class DecodingBatch:
    """The model's state for some rows: their cache, and which positions are padding.

    Prompts are padded on the left, so that all rows are at the same cache position. `logits`
    (`[rows, vocab]`) are those for each row's next token.
    """

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int
    ) -> None:
        self._model = model
        self._length = max(len(prompt) for prompt in prompts)
        self._cache = roomy_cache(model.config, self._length + max_new_tokens)
        self._mask: Tensor | None = None
        self.logits = self._read(prompts)

    def advance(self, tokens: Tensor) -> None:
        """Feed each row its next token, int64 `[rows]`, and set `logits`."""
        self._length += 1
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        self.logits = self._forward(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        """Drop every row but `rows`, int64; they take the order given."""
        self._cache.batch_select_indices(rows)
        self.logits = self.logits[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Read each distinct prompt once, then give every row its copy of the result."""
        place = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        ids = torch.zeros(len(place), self._length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for prompt, row in place.items():
            ids[row, self._length - len(prompt) :] = torch.tensor(prompt)
            mask[row, self._length - len(prompt) :] = 1
        device = self._model.device
        # Without a mask transformers takes faster attention kernels.
        self._mask = None if bool(mask.all()) else mask.to(device)
        self.logits = self._forward(ids.to(device))
        if len(place) < len(prompts):
            self.keep(torch.tensor([place[prompt] for prompt in prompts], device=device))
        return self.logits

    def _forward(self, ids: Tensor) -> Tensor:
        positions = None
        if self._mask is not None:
            positions = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits
