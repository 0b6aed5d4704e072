"""The log-prob pass: Σ log p over spans of given tokens, packed, through the training head."""

from __future__ import annotations

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
from megatron_vr.training.feed import Feed
from megatron_vr.training.micro_batch import MicroBatch, TokenTable
from megatron_vr.training.update import run_model

Advance = Callable[[int], None]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sequenced:
    """Tokens, and the spans [start, end) of them whose log-probs are wanted (1 ≤ start ≤ end)."""

    token_ids: Sequence[int]
    spans: tuple[tuple[int, int], ...]

    @property
    def needed(self) -> int:
        """Tokens up to the last wanted one."""
        return max([1, *(end for _, end in self.spans)])


@torch.no_grad()
def score(
    models: Sequence[Any],
    sequences: Sequence[Sequenced],
    micro_batch_tokens: int,
    on_progress: Advance | None = None,
) -> list[tuple[float, ...]]:
    """For every sequence Σ_t log p(token_t | all before it) over each of its spans, in float64.

    `models` are this rank's bare stages. All ranks of one data-parallel replica call it with the
    same sequences and get the same sums; replicas may be given different ones, and different
    numbers of them. The packing changes a sum by rounding only. `on_progress` hears how many
    sequences were taken up. Raises DataError for a span outside its sequence, and for a sequence
    longer than `micro_batch_tokens`.
    """
    if not sequences:
        return []
    feed = Feed.of(_table(sequences), models[0], micro_batch_tokens)
    packs = feed.packs(range(len(sequences)), ranks=1, rank=0)
    run = partial(_forward, sequences=sequences, advance=on_progress or (lambda amount: None))
    interleaved = len(models) > 1
    streams = [_stream(feed, packs, silent=chunk > 0) for chunk in range(len(models))]
    with _evaluating(models):
        scored = get_forward_backward_func()(
            forward_step_func=run,
            data_iterator=streams if interleaved else streams[0],
            model=list(models) if interleaved else models[0],
            num_microbatches=len(packs),
            seq_length=micro_batch_tokens,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    sums = {index: found for pack in scored for index, found in pack.items()}
    return _shared(sums, sequences, feed.device)


@dataclass(frozen=True)
class _Pack:
    indices: list[int]
    batch: MicroBatch
    silent: bool


def _stream(feed: Feed, packs: Sequence[list[int]], silent: bool) -> Iterator[_Pack]:
    for pack in packs:
        yield _Pack(pack, feed.table.micro_batch(pack, feed.shape, feed.device), silent)


def _forward(
    stream: Iterator[_Pack], model: Any, *, sequences: Sequence[Sequenced], advance: Advance
) -> tuple[torch.Tensor, Any]:
    """Megatron's forward step: the model's output, and what to keep of it on the last stage."""
    pack = next(stream)
    output = run_model(model, pack.batch)
    if not pack.silent:
        advance(len(pack.indices))
    return output, partial(_span_sums, pack=pack, sequences=sequences)


def _span_sums(
    log_probs: torch.Tensor,
    *,
    pack: _Pack,
    sequences: Sequence[Sequenced],
    non_loss_data: bool,
) -> dict[int, list[float]]:
    """Sums over the part of each span that is on this context-parallel rank."""
    values = log_probs.double().cpu().numpy()
    edges = np.searchsorted(pack.batch.owners, np.arange(len(pack.indices) + 1))
    sums = {}
    for place, index in enumerate(pack.indices):
        own = slice(edges[place], edges[place + 1])
        targets, mine = pack.batch.targets[own], values[own]
        bounds = [np.searchsorted(targets, span) for span in sequences[index].spans]
        sums[index] = [float(mine[first:last].sum()) for first, last in bounds]
    return sums


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
    for first, last in sequence.spans:
        if not 1 <= first <= last <= length:
            raise DataError(
                f"sequence {row}: span [{first}, {last}) is not within tokens 1 to {length} (the "
                "first token has nothing before it to be predicted from)"
            )


def _shared(
    sums: dict[int, list[float]], sequences: Sequence[Sequenced], device: torch.device
) -> list[tuple[float, ...]]:
    """All sums on all ranks of the replica: context parts added, the last stage's sent back."""
    counts = [len(sequence.spans) for sequence in sequences]
    flat = torch.zeros(sum(counts), dtype=torch.float64)
    if sums:
        flat = torch.tensor(
            [value for index in range(len(sequences)) for value in sums[index]],
            dtype=torch.float64,
        )
    flat = flat.to(device)
    if parallel_state.get_context_parallel_world_size() > 1:
        dist.all_reduce(flat, group=parallel_state.get_context_parallel_group())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(flat, last, group=parallel_state.get_pipeline_model_parallel_group())
    values = iter(flat.tolist())
    return [tuple(next(values) for _ in range(count)) for count in counts]


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
