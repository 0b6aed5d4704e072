from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from megatron_vr.rollout.cache import RoomyLayer


def test_a_roomy_layer_holds_what_the_stock_layer_holds() -> None:
    """Through prompts, single tokens past its margin, repeated, dropped and reordered rows."""
    generator = torch.Generator().manual_seed(0)

    def states(rows: int, new: int) -> Tensor:
        return torch.randn(rows, 2, new, 4, generator=generator)

    roomy, stock = RoomyLayer(limit=3 + 2 * RoomyLayer.MARGIN), DynamicLayer()
    rows = 3
    for step in range(2 * RoomyLayer.MARGIN):
        new = 3 if step == 0 else 1
        keys, values = states(rows, new), states(rows, new)
        for found, expected in zip(
            roomy.update(keys, values), stock.update(keys, values), strict=True
        ):
            assert torch.equal(found, expected), f"after token {step}"
        kept = {0: [0, 0, 1, 1, 2, 2], 5: [5, 0, 3], 70: [1, 2], 90: [1, 0, 1]}.get(step)
        if kept is not None:
            rows = len(kept)
            roomy.batch_select_indices(torch.tensor(kept))
            stock.batch_select_indices(torch.tensor(kept))
            assert torch.equal(roomy.keys, stock.keys), f"keys after keeping {kept}"
            assert torch.equal(roomy.values, stock.values), f"values after keeping {kept}"
    assert roomy.get_seq_length() == stock.get_seq_length()
