from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_vr.parallel.layout import Layout, destroy, initialise, join_world


@pytest.fixture(scope="module")
def megatron() -> Iterator[None]:
    """Megatron's process groups for this process alone, on the CPU."""
    join_world(timeout_minutes=1)
    initialise(Layout(), seed=1, device="cpu")
    yield
    destroy()
