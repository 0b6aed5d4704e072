"""Parts that fail, die, hang or run out of memory, and what is recorded of them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from tools.bench.gpu import measure
from tools.bench.on_gpu.parts import Part, ends
from tools.bench.on_gpu.record import OUT_OF_TIME, Record

SCRIPTED = "tests.bench.scripted"


def run(folder: Path, *parts: Part, seconds: float = 60.0, least: float = 0.2) -> dict[str, Any]:
    """What the file says after running `parts`."""
    file = folder / "out.json"
    measure(file, parts, seconds, True, Console(quiet=True), least)
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def test_a_case_that_fails_or_dies_costs_only_itself(tmp_path: Path) -> None:
    first = Part("first", SCRIPTED, ("works", "fails", "dies", "not here", "works too"), 1)
    second = Part("second", SCRIPTED, ("works",), 1)
    found = run(tmp_path, first, second)
    assert found["complete"]
    cases = found["parts"]["first"]["cases"]
    assert {name: case["status"] for name, case in cases.items()} == {
        "works": "done",
        "fails": "failed",
        "dies": "failed",
        "not here": "not run",
        "works too": "done",
    }
    assert cases["fails"]["why"] == "ValueError: this case fails"
    assert cases["dies"]["why"] == "exit status -11: the last words"
    assert cases["not here"]["why"] == "it is not here"
    # What it had measured stays.
    assert "begun" in cases["dies"]["rows"]
    # With what its process printed; beside the file is all of it.
    assert "ValueError: this case fails" in cases["fails"]["log"]
    assert cases["dies"]["log"][-1] == "the last words"
    assert "log" not in cases["works"]
    assert any("the last words" in log.read_text() for log in (tmp_path / "out-logs").iterdir())
    # After one that failed another process goes on; healthy ones share theirs.
    process = {name: case["rows"]["begun"]["process"] for name, case in cases.items()}
    assert process["works"] == process["fails"] != process["dies"] != process["not here"]
    assert process["not here"] == process["works too"]
    assert found["parts"]["second"]["cases"]["works"]["status"] == "done"


def test_a_module_that_cannot_be_imported_is_a_failure_of_each_case(tmp_path: Path) -> None:
    found = run(tmp_path, Part("none", "tests.bench.absent", ("one", "two"), 1))
    for case in found["parts"]["none"]["cases"].values():
        assert case["status"] == "failed"
        assert "No module named 'tests.bench.absent'" in case["why"]


def test_a_case_that_hangs_is_cut_off_with_all_that_it_started(tmp_path: Path) -> None:
    found = run(tmp_path, Part("hangs", SCRIPTED, ("works", "hangs", "waits"), 1), seconds=6.0)
    cases = found["parts"]["hangs"]["cases"]
    assert cases["works"]["status"] == "done"
    assert (cases["hangs"]["status"], list(cases["hangs"]["rows"])) == (
        "cut off",
        ["begun", "child"],
    )
    assert cases["hangs"]["log"] == ["it hangs now"]
    assert (cases["waits"]["status"], cases["waits"]["why"]) == ("not run", OUT_OF_TIME)
    assert not alive(cases["hangs"]["rows"]["child"]["process"])
    assert not alive(cases["hangs"]["rows"]["begun"]["process"])


def alive(process: int) -> bool:
    """Whether it still runs after a while (a kill takes its time on a busy machine); one that ended
    and whose parent never asked does not."""
    for _ in range(100):
        try:
            if psutil.Process(process).status() == psutil.STATUS_ZOMBIE:
                return False
        except psutil.NoSuchProcess:
            return False
        time.sleep(0.1)
    return True


def test_a_part_that_hangs_takes_its_own_time_alone_and_what_is_left_is_used(
    tmp_path: Path,
) -> None:
    hangs = Part("hangs", SCRIPTED, ("hangs", "waits"), 1)
    found = run(tmp_path, hangs, Part("after", SCRIPTED, ("works",), 2), seconds=15.0)
    assert found["parts"]["hangs"]["cases"]["hangs"]["status"] == "cut off"
    assert found["parts"]["after"]["cases"]["works"]["status"] == "done"
    # Begun once all parts had their turn.
    assert found["parts"]["hangs"]["cases"]["waits"]["status"] == "done"


def test_a_case_that_was_cut_off_is_tried_again_where_more_time_is_left(tmp_path: Path) -> None:
    parts = Part("slow", SCRIPTED, ("hangs once",), 1), Part("after", SCRIPTED, ("works",), 2)
    found = run(tmp_path, *parts, seconds=15.0)
    case = found["parts"]["slow"]["cases"]["hangs once"]
    assert (case["status"], case["why"], "log" in case) == ("done", "", False)


def test_what_was_started_ends_with_the_benchmark_that_was_killed(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    child = [sys.executable, "-m", "tools.bench.on_gpu.child", SCRIPTED, "hangs"]
    child += ["--events", str(events), "--until", str(time.time() + 300)]
    child += ["--folder", str(tmp_path)]
    parent = (
        "import os, subprocess, sys\n"
        "words = [*sys.argv[1:], '--parent', str(os.getpid())]\n"
        "subprocess.Popen(words, start_new_session=True).wait()\n"
    )
    with subprocess.Popen([sys.executable, "-c", parent, *child]) as process:
        begun = [event["values"]["process"] for event in rows(events, 2)]
        assert all(psutil.pid_exists(each) for each in begun)
        process.kill()
    assert not any(alive(each) for each in begun)


def rows(events: Path, count: int) -> list[dict[str, Any]]:
    """The first rows that a process tells, when they are there."""
    for _ in range(300):
        lines = events.read_text("utf-8").splitlines() if events.exists() else []
        found = [event for event in map(json.loads, lines) if event["event"] == "row"]
        if len(found) >= count:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{events} has {lines}")


def test_parts_for_which_no_time_is_left_are_recorded_as_not_run(tmp_path: Path) -> None:
    found = run(tmp_path, Part("late", SCRIPTED, ("works",), 1), seconds=1.0, least=15.0)
    case = found["parts"]["late"]["cases"]["works"]
    assert (case["status"], case["why"], case["rows"]) == ("not run", OUT_OF_TIME, {})


def test_what_one_part_leaves_of_its_time_is_the_next_ones(tmp_path: Path) -> None:
    parts = (Part("a", "a", (), 1), Part("b", "b", (), 3))
    assert ends(parts, begin=100.0, seconds=40.0) == pytest.approx([110.0, 140.0])


def test_a_case_that_runs_out_of_memory_is_tried_smaller_and_so_are_those_after_it(
    tmp_path: Path,
) -> None:
    cases = ("works", "too large", "works too")
    found = run(tmp_path, Part("large", SCRIPTED, cases, 1, shrinks=True))["parts"]["large"]
    rows = {name: case["rows"]["ended"]["smaller"] for name, case in found["cases"].items()}
    assert rows == {"works": 0, "too large": 2, "works too": 2}
    assert all(case["status"] == "done" for case in found["cases"].values())


def test_what_a_smaller_case_is_compared_with_is_measured_as_small_too(tmp_path: Path) -> None:
    cases = ("8b plain", "8b fine", "8b too-large", "4b plain")
    part = Part("large", SCRIPTED, cases, 1, shrinks=True, reference="plain")
    found = run(tmp_path, part)["parts"]["large"]["cases"]
    assert all(case["status"] == "done" for case in found.values())
    depths = {
        name: {row: values["smaller"] for row, values in case["rows"].items() if "ended" in row}
        for name, case in found.items()
    }
    assert depths == {
        "8b plain": {"ended": 0, "ended, smaller 1": 1, "ended, smaller 2": 2},
        "8b fine": {"ended": 0},
        # What it told before memory ran out is gone: it was of another depth.
        "8b too-large": {"ended": 2},
        "4b plain": {"ended": 2},
    }
    assert found["8b too-large"]["rows"]["begun"]["smaller"] == 2


def test_where_nothing_shrinks_running_out_of_memory_is_a_failure(tmp_path: Path) -> None:
    part = Part("large", SCRIPTED, ("too large", "works"), 1)
    found = run(tmp_path, part)["parts"]["large"]["cases"]
    assert found["too large"]["why"].endswith("OutOfMemoryError: CUDA out of memory")
    assert found["works"]["status"] == "done"


def test_a_record_is_json_that_any_reader_takes_and_never_half_written(tmp_path: Path) -> None:
    record = Record(tmp_path / "new" / "out.json", {"rehearsal": True})
    for number in range(3):
        record.row("part", "case", str(number), {"nan": float("nan"), "list": [float("inf"), 1.5]})
        # Without Python's own names for what JSON lacks.
        found = json.loads((tmp_path / "new" / "out.json").read_text(), parse_constant=pytest.fail)
        assert found["parts"]["part"]["cases"]["case"]["rows"][str(number)] == {
            "nan": "nan",
            "list": ["inf", 1.5],
        }
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.json"]
