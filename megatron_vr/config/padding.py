"""What the places of sequences and of packs are padded to a multiple of. Pure."""

from __future__ import annotations

import math


def sequence_multiple(context: int) -> int:
    """Of each sequence: every one of `context` ranks takes two chunks of it."""
    return 2 * context if context > 1 else 1


def pack_multiple(context: int, sequence_parallel: int, align: int) -> int:
    """Of a whole pack: whole sequences' multiples, and on each of `context` ranks `align` places
    for each of the `sequence_parallel` ranks that share what is there."""
    return sequence_parallel * math.lcm(sequence_multiple(context), context * align)
