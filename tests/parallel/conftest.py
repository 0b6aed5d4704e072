"""A run that is ready to train, for tests that train it in many ways."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_vr.algorithm.run import prepare, read_problems
from megatron_vr.parallel.interrupt import Interrupt
from tests.parallel.two_nodes import settings_of, work_on


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first training has its inputs: copy it."""
    folder = tmp_path_factory.mktemp("ready") / "run"
    read_problems(prepare(settings_of(folder, "parallel.processes=1")), Interrupt())
    work_on(0, folder, ["iteration-0/base"])
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(ready, tmp_path / "run")
