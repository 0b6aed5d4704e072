"""The log-prob pass: log p of given tokens, packed, through the training head."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel import get_forward_backward_func
from numpy.typing import NDArray

from megatron_vr.errors import DataError
from megatron_vr.parallel.packing import MicroBatches
from megatron_vr.training.feed import Feed
from megatron_vr.training.micro_batch import MicroBatch, TokenTable
from megatron_vr.training.places import Integers
from megatron_vr.training.update import run_model

Advance = Callable[[int], None]
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sequenced:
    """Tokens, and the spans [start, end) of them whose log-probs are wanted (1 ≤ start ≤ end).

    Spans ascend and do not overlap.
    """

    token_ids: Sequence[int] | NDArray[np.integer[Any]]
    spans: tuple[tuple[int, int], ...]

    @property
    def needed(self) -> int:
        """Tokens up to the last wanted one."""
        return max([1, *(end for _, end in self.spans)])

    @property
    def wanted(self) -> int:
        """How many log-probs are wanted."""
        return sum(end - start for start, end in self.spans)


@dataclass(frozen=True, eq=False)
class Scored:
    """Of one sequence: `log_probs` [wanted] float32 of its spans' tokens, span after span; `sums`
    their sum over each span, added in float64; `entropies` [wanted] in nats, if asked for."""

    sums: tuple[float, ...]
    log_probs: Floats
    entropies: Floats | None


@torch.no_grad()
def score(
    models: Sequence[Any],
    sequences: Sequence[Sequenced],
    micro_batch_tokens: int,
    on_progress: Advance | None = None,
    *,
    entropy: bool = False,
    share_prompts: bool = False,
) -> list[Scored]:
    """log p(token_t | all before it) of every sequence's spans.

    `models` are this rank's bare stages. All ranks of one data-parallel replica call it with the
    same sequences and get the same scores; replicas may be given different ones, and different
    numbers of them. The packing changes a log-prob by rounding only. `on_progress` hears how many
    sequences were taken up. With `share_prompts` (see `models.spec.shares_prompts`) tokens before
    the first span are computed once for sequences that have the same. Raises DataError for a span
    outside its sequence, and for a sequence longer than `micro_batch_tokens`.
    """
    if not sequences:
        return []
    feed = Feed.of(_table(sequences), models[0], micro_batch_tokens, share_prompts)
    (packs,) = feed.packs(range(len(sequences)), ranks=1)
    found = _Found.of(feed.table, rows=2 if entropy else 1, device=feed.device)
    run = partial(_forward, found=found, advance=on_progress or (lambda amount: None))
    interleaved = len(models) > 1
    streams = [_stream(feed, packs, silent=chunk > 0) for chunk in range(len(models))]
    with _evaluating(models):
        get_forward_backward_func()(
            forward_step_func=run,
            data_iterator=streams if interleaved else streams[0],
            model=list(models) if interleaved else models[0],
            num_microbatches=len(packs),
            seq_length=micro_batch_tokens,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return _by_sequence(sequences, found.everywhere())


@dataclass(frozen=True)
class _Pack:
    indices: Integers
    batch: MicroBatch
    silent: bool


@dataclass(frozen=True)
class _Found:
    """`values` [rows, targets of the table] float32, zero where another rank has them; sequence i's
    target t is in column `column[start of i + t]`."""

    values: torch.Tensor
    column: Integers
    starts: Integers

    @staticmethod
    def of(table: TokenTable, rows: int, device: torch.device) -> _Found:
        column = np.cumsum(table.is_target) - 1
        values = torch.zeros(rows, int(table.is_target.sum()), device=device)
        return _Found(values, column, table.offsets[:-1])

    def put(self, values: torch.Tensor, pack: _Pack) -> None:
        """Take up what the model found for the targets of `pack`, [rows, targets] or [targets]."""
        at = self.starts[pack.indices[pack.batch.owners]] + pack.batch.targets
        columns = torch.from_numpy(self.column[at]).to(self.values.device)
        self.values[:, columns] = values.reshape(len(self.values), -1)

    def everywhere(self) -> NDArray[np.float32]:
        """All values on all ranks of the replica: context parts joined, the last stage's sent."""
        if parallel_state.get_context_parallel_world_size() > 1:
            dist.all_reduce(self.values, group=parallel_state.get_context_parallel_group())
        if parallel_state.get_pipeline_model_parallel_world_size() > 1:
            last = parallel_state.get_pipeline_model_parallel_last_rank()
            group = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(self.values, last, group=group)
        values: NDArray[np.float32] = self.values.cpu().numpy()
        return values


def _stream(feed: Feed, packs: MicroBatches, silent: bool) -> Iterator[_Pack]:
    for pack in packs:
        indices = np.array(pack, dtype=np.int64)
        yield _Pack(indices, feed.micro_batch(indices), silent)


def _forward(
    stream: Iterator[_Pack], model: Any, *, found: _Found, advance: Advance
) -> tuple[torch.Tensor, Any]:
    """Megatron's forward step: the model's output, and what to do with it on the last stage."""
    pack = next(stream)
    output = run_model(model, pack.batch, entropy=len(found.values) > 1)
    if not pack.silent:
        advance(len(pack.indices))

    def keep(values: torch.Tensor, non_loss_data: bool) -> None:
        found.put(values, pack)

    return output, keep


def _by_sequence(sequences: Sequence[Sequenced], values: NDArray[np.float32]) -> list[Scored]:
    scored, start = [], 0
    for sequence in sequences:
        own = values[:, start : start + sequence.wanted]
        start += sequence.wanted
        edges = np.cumsum([0, *(last - first for first, last in sequence.spans)])
        wide = own[0].astype(np.float64)
        sums = tuple(float(wide[first:last].sum()) for first, last in itertools.pairwise(edges))
        scored.append(Scored(sums, own[0], own[1] if len(own) > 1 else None))
    return scored


def _table(sequences: Sequence[Sequenced]) -> TokenTable:
    lengths = [sequence.needed for sequence in sequences]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.zeros(offsets[-1], dtype=np.int64)
    is_target = np.zeros(offsets[-1], dtype=np.bool_)
    for row, (sequence, start) in enumerate(zip(sequences, offsets, strict=False)):
        _check(row, sequence)
        tokens[start : start + lengths[row]] = sequence.token_ids[: lengths[row]]
        for first, last in sequence.spans:
            is_target[start + first : start + last] = True
    return TokenTable(tokens, is_target, offsets)


def _check(row: int, sequence: Sequenced) -> None:
    length = len(sequence.token_ids)
    if not length:
        raise DataError(f"sequence {row} has no token")
    before = 1
    for first, last in sequence.spans:
        if not before <= first <= last <= length:
            raise DataError(
                f"sequence {row}: span [{first}, {last}) is not within tokens {before} to {length} "
                "(spans ascend; the first token has nothing before it to be predicted from)"
            )
        before = last


@contextmanager
def _evaluating(models: Sequence[Any]) -> Iterator[None]:
    """Evaluation mode (nothing is recomputed), put back afterwards."""
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, training, strict=True):
            model.train(mode)
