"""How many forward passes of a pipeline rank await their backward pass. Pure."""

from __future__ import annotations

from megatron_vr.parallel.layout import Layout


def in_flight(layout: Layout, rank: int) -> int:
    """Passes of one chunk of layers that rank `rank` keeps at most, in a step of enough batches.

    Megatron's schedules warm up with p − rank − 1 forward passes, interleaved ones (v chunks, in
    groups of p) with 2 (p − rank − 1) + (v − 1) p; one more is forward of the first backward pass
    (`get_pp_rank_microbatches`).
    """
    behind = layout.pipeline - rank - 1
    if layout.virtual_pipeline is None:
        return behind + 1
    return 2 * behind + (layout.virtual_pipeline - 1) * layout.pipeline + 1
