from __future__ import annotations

import os
import warnings
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, why_missing


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of four nodes, one for all tests of a worker: leave its nodes as they are."""
    needs_slurm()
    yield from _started(Cluster(tmp_path_factory.mktemp("slurm") / "c"))


@pytest.fixture
def own_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Slurm of two nodes for one test, which may break it."""
    needs_slurm()
    yield from _started(Cluster(tmp_path_factory.mktemp("own") / "c", nodes=2))


def needs_slurm() -> None:
    """Skip the test where no Slurm can be started; in CI that is a failure."""
    why = why_missing()
    if why is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"tests of Slurm cannot run here: {why}", pytrace=False)
    # pytest says a warning at its end; a skip it only counts.
    warnings.warn(why, stacklevel=2)
    pytest.skip(why)


def _started(cluster: Cluster) -> Iterator[Cluster]:
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
