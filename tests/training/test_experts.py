"""A model with experts learns the same however it is split over two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_vr.parallel.layout import Layout
from tests.parallel.launch import run_ranks
from tests.training.cases import OVERLAP, Case
from tests.training.harness import with_layout
from tests.training.ranks import compared

MODEL = "qwen3_moe-untied"
SEVERAL = {"micro_batch_tokens": 40}
# Pipelines are in tests/parallel/test_split_models.py.
CASES = [
    Case("dp2 overlap, several packs", MODEL, changes=OVERLAP, bucket_size=2000),
    Case("tp2 sp, several packs", MODEL, Layout(tensor=2, sequence_parallel=True), SEVERAL),
    Case("cp2 recompute", MODEL, Layout(context=2), {"recompute": "full"}),
]


def two_ranks(rank: int, folder: str) -> dict[str, Any]:
    """What this rank found in each case."""
    return {case.name: with_layout(case.layout, compared, case, Path(folder)) for case in CASES}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The references of all cases, and what each rank found."""
    # Here, so that the spawned processes need not import Transformers.
    from tests.training.reference import reference_trainings

    folder = tmp_path_factory.mktemp("experts")
    return reference_trainings(CASES, folder), run_ranks(two_ranks, 2, str(folder))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layout_does_not_change_what_experts_learn(case: Case, measured: Any) -> None:
    from tests.training.reference import check_training

    references, ranks = measured
    for found in ranks:
        check_training(case, found[case.name], references[case.name])
