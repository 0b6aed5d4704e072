"""The whole step against Transformers with Liger's kernels, at equal batch, layers and weights'
precision, on one card: ours, then theirs, in one process.

Equal: shape, layers, tokens, the sequences of a batch, nothing recomputed, AdamW with a clipped
gradient. Not equal: their loss has no weight for each sequence; gradients of micro-batches are
summed in bfloat16 (ours in float32); AdamW is on bfloat16 weights where it is called so, which
costs less than ours.
"""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from megatron_vr.models.architecture import Architecture
from megatron_vr.training.micro_batch import TokenTable
from tools.bench.on_gpu.batches import budget, places_of, random_table
from tools.bench.on_gpu.hugging_face import Attention, Batch, Rival, packed, padded
from tools.bench.on_gpu.place import NotHere, Place, Row
from tools.bench.on_gpu.shapes import whole_shape
from tools.bench.on_gpu.steps import Step, build, fitting
from tools.bench.on_gpu.timing import Timed, collect, forget_peak, peak_gib

SHAPE = "8b"


def measure(case: str, place: Place) -> Iterator[Row]:
    """One of the cases of the part `rival`: the lengths of the batch."""
    if not place.rehearse and importlib.util.find_spec("liger_kernel") is None:
        raise NotHere("liger-kernel is not installed here")
    architecture = fitting(whole_shape(SHAPE, place), place)
    table = random_table(places_of(case, place), architecture.vocab_size)
    step = Step.of(case, build(architecture, "bf16", place), architecture, place)
    yield Row("ours", step.measured())
    del step
    collect()
    yield from theirs(case, architecture, table, place)


def theirs(case: str, architecture: Architecture, table: TokenTable, place: Place) -> Iterator[Row]:
    """Their set-ups: the cheaper optimizer, float32 main weights with the fastest attention so far,
    and of traces batches with padding. An attention that does not run is a row that says why."""
    rival = Rival(architecture, place)
    rival.use(masters=False)
    kinds: tuple[Attention, ...] = ("packed",) if case == "traces" else ("flash", "cuDNN")
    found: dict[Attention, float] = {}
    for kind in kinds:
        values = attempted(rival, table, kind, place)
        if "seconds" in values:
            found[kind] = values["seconds"]
        yield Row(f"{kind}, bfloat16 AdamW", values)
    if found:
        best = min(found, key=lambda kind: found[kind])
        rival.use(masters=True)
        yield Row(f"{best}, float32 main weights", measured(rival, table, best, place))
    if case == "traces":
        rival.use(masters=False)
        yield Row("flash over padding, bfloat16 AdamW", attempted(rival, table, "flash", place))


def attempted(rival: Rival, table: TokenTable, kind: Attention, place: Place) -> dict[str, Any]:
    """As `measured`; `failed` and the reason where this torch has no such kernel for the batch.

    Raises what leaves the process unfit: memory that ran out, a device that failed.
    """
    try:
        return measured(rival, table, kind, place)
    except (RuntimeError, TypeError, ValueError) as error:
        # Older versions of torch have no AcceleratorError.
        if type(error).__name__ in ("OutOfMemoryError", "AcceleratorError"):
            raise
        traceback.print_exc()
        rival.model.zero_grad(set_to_none=True)
        lines = str(error).strip().splitlines() or [""]
        return {"failed": f"{type(error).__name__}: {lines[0]}"}


def measured(rival: Rival, table: TokenTable, kind: Attention, place: Place) -> dict[str, Any]:
    """Time and memory of their step with one kind of attention."""
    batches = batches_of(table, kind, place)
    collect()
    forget_peak()
    losses: list[float] = []
    work = partial(rival.step, batches, kind)
    timed = Timed.of(lambda: losses.append(work()), place, most=3)
    tokens = int(table.places.sum())
    return {
        "layers": rival.model.config.num_hidden_layers,
        "batches": [list(batch.tokens.shape) for batch in batches],
        "tokens": tokens,
        "seconds": timed.seconds,
        "tokens_per_s": tokens / timed.seconds,
        **peak_gib(),
        "first_s": timed.first,
        "all_seconds": timed.all_seconds,
        "losses": losses,
    }


def batches_of(table: TokenTable, kind: Attention, place: Place) -> list[Batch]:
    """Packs, or batches of the longest first, each of as many places as a pack with padding."""
    make = packed if kind == "packed" else padded
    return [make(table, rows, place.device) for rows in _rows(table, kind, budget(place))]


def _rows(table: TokenTable, kind: Attention, places: int) -> list[list[int]]:
    order = np.argsort(-table.places, kind="stable").tolist()
    groups: list[list[int]] = []
    taken = 0
    for row in order:
        size = int(table.places[row])
        if kind == "packed":
            full = taken + size > places
        else:
            # Sorted: the first of a batch is its longest.
            longest = int(table.places[groups[-1][0]]) if groups else 0
            full = bool(groups) and longest * (len(groups[-1]) + 1) > places
        if not groups or full:
            groups.append([])
            taken = 0
        groups[-1].append(row)
        taken += size
    return groups
