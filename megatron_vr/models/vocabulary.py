"""One chunk of logits whose columns, the vocabulary, may be spread over tensor-parallel ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class VocabularyShard:
    """This rank's rows of an output weight of which every rank of `group` holds `rows`, in order.

    Rows from `vocab_size` on only pad the vocabulary.
    """

    group: dist.ProcessGroup
    rows: int
    vocab_size: int

    @property
    def first(self) -> int:
        """The token id of row 0."""
        return self.group.rank() * self.rows

    @property
    def real(self) -> int:
        """How many of the rows, from row 0, belong to the vocabulary."""
        return min(max(self.vocab_size - self.first, 0), self.rows)

    def unknown(self, labels: Tensor) -> Tensor:
        """Which labels are no token of the vocabulary, on any rank."""
        return (labels < 0) | (labels >= self.vocab_size)

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """[n, rows] float32 of `hidden` [n, hidden]; -inf in columns that pad the vocabulary."""
        logits = torch.mm(hidden, weight.t()).float()
        if self.real < self.rows:
            logits[:, self.real :] = float("-inf")
        return logits

    def at(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The logits [n] of `labels` [n], from whichever rank has them."""
        local, mine = self._local(labels)
        return self.summed(logits.gather(1, local[:, None])[:, 0].masked_fill(~mine, 0.0))

    def columns(self, labels: Tensor) -> Tensor:
        """Each label's column here, −1 where it is another rank's."""
        local, mine = self._local(labels)
        return local.masked_fill(~mine, -1)

    def log_sum(self, largest: Tensor, total: Tensor) -> Tensor:
        """log Σ exp l [n] over all ranks, of each of which `largest` [n] is the greatest logit m
        and `total` [n] Σ exp(l − m)."""
        if self.group.size() == 1:
            return largest + total.log()
        over_all = self._greatest(largest.clone())
        return over_all + self.summed(total * (largest - over_all).exp()).log()

    def exponentials(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """exp(logit − m) in the memory of `logits`, its sum [n] over all ranks, and m [n]."""
        largest = self._largest(logits)
        powers = logits.sub_(largest[:, None]).exp_()
        return powers, self.summed(powers.sum(dim=1)), largest

    def entropy(self, logits: Tensor) -> Tensor:
        """log Σ exp l − Σ p·l [n] in nats; overwrites `logits`."""
        shifted = logits.sub_(self._largest(logits)[:, None])[:, : self.real]
        powers = shifted.exp()
        total = powers.sum(dim=1)
        sums = self.summed(torch.stack((total, powers.mul_(shifted).sum(dim=1))))
        return sums[0].log() - sums[1] / sums[0]

    def gradient(self, powers: Tensor, total: Tensor, labels: Tensor, derivative: Tensor) -> Tensor:
        """derivative · d log p(y) / d logit_v = derivative · ([v = y] − p(v)), over `powers`.

        [n, rows] float32, with p = `powers` / `total` [n] and `derivative` [n].
        """
        gradient = powers.mul_((-derivative / total)[:, None])
        local, mine = self._local(labels)
        return gradient.scatter_add_(1, local[:, None], derivative.masked_fill(~mine, 0.0)[:, None])

    def _local(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Each label's column here (0 where it is another rank's) and whether it is this rank's."""
        local = labels - self.first
        mine = (local >= 0) & (local < self.real)
        return local.masked_fill(~mine, 0), mine

    def _largest(self, logits: Tensor) -> Tensor:
        return self._greatest(logits.amax(dim=1))

    def _greatest(self, values: Tensor) -> Tensor:
        if self.group.size() > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values

    def summed(self, values: Tensor) -> Tensor:
        """The sum of `values` over the ranks, in their memory."""
        if self.group.size() > 1:
            dist.all_reduce(values, group=self.group)
        return values
