"""How full packs are and how evenly ranks work, on traces of log-normal length. Pure, seconds.

    python -m tools.bench.packing

Lengths of mean 6k and at most 32k tokens, a budget of 32k, layers as wide as Qwen3-4B's. Packs vary
in length, so what is not filled is not computed: padding comes from context and sequence
parallelism alone, here of 4 and 8 ranks.
"""

from __future__ import annotations

import argparse

import numpy as np

from megatron_vr.parallel.packing import CostModel, pack_batch
from megatron_vr.training.places import PackShape
from tools.bench.harness import Result, show

COST = CostModel.of(hidden=2560, ffn=9728, query=4096, key_value=1024)
BUDGET = 32768


def lengths(count: int, seed: int) -> list[int]:
    """Trace lengths: log-normal of mean 6k, none over the budget."""
    draws = np.random.default_rng(seed).lognormal(np.log(6000) - 0.32, 0.8, 4 * count).astype(int)
    return draws[(draws > 64) & (draws <= BUDGET)][:count].tolist()


def measure(batch: int, ranks: int, seeds: int) -> list[Result]:
    """The worst of `seeds` batches."""
    shape = PackShape(context=4, sequence_parallel=8)
    imbalances, useful, filled = [], [], []
    for seed in range(seeds):
        drawn = lengths(batch, seed)
        plan = pack_batch(drawn, ranks, BUDGET, COST)
        work = [sum(COST(drawn[i]) for pack in rank for i in pack) for rank in plan]
        packs = [np.array([drawn[i] for i in pack]) for rank in plan for pack in rank]
        imbalances.append(max(work) * ranks / sum(work) - 1)
        useful.append(sum(drawn) / sum(shape.total(pack, 0) for pack in packs))
        filled.append(sum(drawn) / (len(packs) * BUDGET))
    name = f"batch {batch} over {ranks} ranks"
    return [
        Result(f"{name}: useful tokens", min(useful), "≥ 0.98", f"packs {min(filled):.1%} full"),
        Result(f"{name}: imbalance", max(imbalances), "< 0.03"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="batches of each kind")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    cases = [(128, 4), (256, 8), (512, 16), (4096, 8)]
    results = [result for case in cases for result in measure(*case, options.seeds)]
    show("packing", results, options.json)


if __name__ == "__main__":
    main()
