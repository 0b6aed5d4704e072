"""The order of the tests."""

from __future__ import annotations

import pytest

# They take a minute or more each. Begun first: else one worker is left with them at the end.
LONG = (
    "tests/parallel/test_launch.py",
    "tests/servers/test_deaths.py",
    "tests/servers/test_algorithm.py",
    "tests/servers/test_evaluated.py",
    "tests/parallel/test_nodes.py",
    "tests/servers/test_new_weights.py",
    "tests/algorithm/test_resume.py",
    "tests/servers/test_serve.py",
    "tests/servers/test_conformance.py",
    "tests/servers/test_faults.py",
    "tests/cluster/planner/test_memory_activations.py",
    "tests/grading/test_bad_input.py",
    "tests/training/test_two_processes.py",
    "tests/algorithm/benchmarking/test_evaluate_command.py",
    "tests/test_gpu_rehearsal.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; the rest stays as it is."""
    rank = {file: index for index, file in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))
