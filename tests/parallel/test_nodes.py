"""One stage on two nodes: the result of one node, signals, and who is named when one fails."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launch import run_ranks
from tests.parallel.two_nodes import (
    NAMES,
    SFT,
    ended,
    free_port,
    last_line,
    ranks_of,
    stage,
    start,
    two_nodes,
    wait_for,
    wait_for_ranks,
    work_on,
)

ENDLESS = "policy.steps=100000"
QUICK = "policy.log_every=1"
# So many that a signal falls between two, with a checkpoint after each fifth.
STEPS = 12


def result_of(folder: Path) -> tuple[list[tuple[Any, ...]], dict[str, bytes]]:
    """What each step told, without the clock's numbers, and the files of the trained weights."""
    lines = (folder / SFT / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    (checkpoint,) = (folder / SFT / "checkpoints").iterdir()
    weights = {path.name: path.read_bytes() for path in checkpoint.rglob("*.distcp")}
    assert weights
    return [tuple(step[key] for key in ("step", "loss", "grad_norm")) for step in steps], weights


def test_a_signal_to_one_node_stops_all_and_what_goes_on_is_bit_equal_to_one_node(
    folder: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(folder, tmp_path / "alone")
    overrides = (QUICK, f"policy.steps={STEPS}")
    with two_nodes(folder, *overrides) as launchers:
        wait_for(folder / SFT / "metrics.jsonl", launchers)
        # Slurm sends the signal to every process of a node, and a launcher passes it on.
        for process in [launchers[1], *ranks_of(launchers[1])]:
            process.send_signal(signal.SIGUSR1)
        for launcher in launchers:
            code, errors = ended(launcher)
            assert code == 75, errors
            assert "Traceback" not in errors
    assert not (folder / SFT / "_DONE.json").exists(), "the signal came too late"
    with two_nodes(folder, *overrides) as launchers:
        for launcher in launchers:
            code, errors = ended(launcher)
            assert code == 0, errors
    run_ranks(work_on, 2, alone, [SFT], overrides)
    steps, weights = result_of(folder)
    assert [step for step, *_ in steps] == list(range(1, STEPS + 1))
    assert (steps, weights) == result_of(alone)


def test_a_killed_rank_ends_both_nodes_and_its_own_is_named(folder: Path, tmp_path: Path) -> None:
    blamed = tmp_path / "failed"
    with two_nodes(folder, QUICK, ENDLESS, blamed=blamed) as launchers:
        wait_for(folder / SFT / "metrics.jsonl", launchers)
        (victim,) = ranks_of(launchers[1])
        victim.send_signal(signal.SIGKILL)
        for launcher in launchers:
            code, errors = ended(launcher)
            assert code == 1
            told = f"megatron-vr: node node2: rank 1 (pid {victim.pid}) was killed by SIGKILL;"
            assert last_line(errors).startswith(told), errors
    assert blamed.read_text() == f"node2 rank 1 (pid {victim.pid}) was killed by SIGKILL\n"


@pytest.mark.parametrize(("victim", "begun"), [(0, True), (1, False)])
def test_a_killed_launcher_takes_its_ranks_along_and_is_named(
    folder: Path, tmp_path: Path, victim: int, begun: bool
) -> None:
    """Host 0, which keeps the store, in the training; host 1 while its rank starts."""
    blamed = tmp_path / "failed"
    overrides = (QUICK, ENDLESS, "parallel.dead_after_seconds=6")
    with two_nodes(folder, *overrides, blamed=blamed) as launchers:
        if begun:
            wait_for(folder / SFT / "metrics.jsonl", launchers)
        (orphan,) = wait_for_ranks(launchers)[victim]
        launchers[victim].send_signal(signal.SIGKILL)
        code, errors = ended(launchers[1 - victim])
        assert code == 1
        assert last_line(errors).startswith(f"megatron-vr: node {NAMES[victim]}: "), errors
        orphan.wait(20)
    assert [line.split()[0] for line in blamed.read_text().splitlines()] == [NAMES[victim]]


def test_a_node_that_never_comes_is_named_in_time_and_reported(
    folder: Path, tmp_path: Path
) -> None:
    place = ["--nodes", "2", "--node-rank", "0", "--meet", f"127.0.0.1:{free_port()}"]
    command = [*stage(folder, SFT, "cluster.meet_seconds=2"), *place, "--processes", "1"]
    listed = {"SLURM_STEP_NODELIST": "node[1-2]"}
    code, errors = ended(start(command, NAMES[0], tmp_path / "failed", listed))
    assert code == 1
    assert "host 1 (node2) of 2 did not come to 127.0.0.1:" in errors, errors
    assert "within 2 s (cluster.meet_seconds)" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "failed").read_text().startswith("node2 host 1 of 2 did not come to ")


def test_a_rank_that_fails_by_itself_ends_the_other_node_with_its_code(folder: Path) -> None:
    """Only one of the two is given settings that cannot be."""
    with two_nodes(folder, odd={1: "policy.micro_batch_tokens=5"}) as launchers:
        told = [ended(launcher) for launcher in launchers]
    assert [code for code, _ in told] == [1, 1], told
    assert "micro_batch_tokens" in last_line(told[1][1])
    assert last_line(told[0][1]).startswith("megatron-vr: node node2: "), told[0][1]
