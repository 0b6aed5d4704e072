"""Sizes of a rank's share of a micro-batch, from which the bytes of its activations follow."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_vr.cluster.planner.case import Case
from megatron_vr.cluster.planner.parameters import vocabulary_rows


@dataclass(frozen=True)
class Widths:
    """`tokens` of the longest pack on a context-parallel rank, `split` of them on each tensor rank
    where sequence parallelism splits them (else the same); the rest are numbers for each token.

    `queries`, `keys` (values have as many), `heads`, `kv_heads` and `units` (of the MLP, or of one
    expert) are a tensor rank's; `hidden` and `head_dim` are the model's, `item` a number's bytes.
    """

    tokens: int
    split: int
    item: int
    hidden: int
    head_dim: int
    queries: int
    keys: int
    heads: int
    kv_heads: int
    units: int
    rows: int

    @staticmethod
    def of(case: Case) -> Widths:
        """The widths of `case`."""
        a, tensor = case.architecture, case.layout.tensor
        tokens = case.rank_tokens
        units = a.ffn_hidden_size if a.experts is None else a.experts.ffn_hidden_size
        return Widths(
            tokens=tokens,
            split=-(-tokens // tensor) if case.layout.sequence_parallel else tokens,
            item={"float32": 4, "bfloat16": 2}[case.dtype],
            hidden=a.hidden_size,
            head_dim=a.head_dim,
            queries=a.heads * a.head_dim // tensor,
            keys=a.kv_heads * a.head_dim // tensor,
            heads=a.heads // tensor,
            kv_heads=a.kv_heads // tensor,
            units=units // tensor,
            rows=vocabulary_rows(a, case.layout),
        )

    @property
    def boundary(self) -> int:
        """Bytes of the hidden states between two layers."""
        return self.split * self.hidden * self.item

    @property
    def gathered(self) -> int:
        """Bytes of hidden states gathered from the tensor ranks; 0 where they are not split."""
        return self.tokens * self.hidden * self.item if self.split < self.tokens else 0

    @property
    def whole(self) -> int:
        """Bytes of the hidden states of all the rank's tokens."""
        return self.tokens * self.hidden * self.item
