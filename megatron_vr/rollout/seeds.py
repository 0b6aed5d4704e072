"""Random numbers that depend on what is sampled, never on where, when or beside what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def seed_for(run_seed: int, *parts: str | int) -> int:
    """A seed in 0 … 2^63 − 1 for the thing that `parts` name, e.g. `(7, "posterior", id, k)`.

    The same arguments give the same seed on every machine and Python version; `1` and `"1"`
    differ, and so do `("ab", "c")` and `("a", "bc")`.
    """
    name = json.dumps([run_seed, *parts], ensure_ascii=True, separators=(",", ":"))
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class UniformStreams:
    """One stream of uniforms in [0, 1) per row, from the counter-based Philox4x64 (key = seed).

    The t-th draw of a row depends on its seed and t alone, so rows may be dropped at any time.
    """

    BLOCK = 32

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]
        self._block = np.empty((len(seeds), 0))
        self._used = 0

    def draw(self) -> NDArray[np.float64]:
        """The next uniform of every row, float64 `[rows]`."""
        if self._used == self._block.shape[1]:
            self._block = np.stack([g.random(self.BLOCK) for g in self._generators])
            self._used = 0
        self._used += 1
        return self._block[:, self._used - 1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but `rows`, which become rows 0, 1, … in the order given."""
        self._generators = [self._generators[row] for row in rows]
        self._block = self._block[list(rows)]
