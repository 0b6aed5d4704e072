"""`status`: rows from what folder, logs and Slurm tell; here without a Slurm."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from megatron_vr.algorithm.plan import Node, make_plan
from megatron_vr.algorithm.progress_file import StageProgress
from megatron_vr.cli_status import status
from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.job_state import JobState, read_sacct, read_time
from megatron_vr.cluster.jobs import make_jobs
from megatron_vr.cluster.record import Submission, add_submission
from megatron_vr.cluster.status import (
    Evidence,
    Row,
    duration,
    last_error,
    make_row,
    state_of,
    total_line,
)
from megatron_vr.config.load import load_settings
from megatron_vr.traces.store import PROGRESS
from tests.algorithm.tiny_run import TOY

NOW = 1_000_000.0
RUNNING = JobState(
    12, "vr-0:train", "RUNNING", nodes="gpu[1-2]", restarts=1, seconds=500, limit_seconds=3600,
    starts=NOW - 500,
)  # fmt: skip
# 40 steps in 400 s, 60 to go; told 10 s ago; 2000 tokens each.
HALFWAY = StageProgress(140, 200, "steps", NOW - 410, 100, NOW - 10, tokens=80_000, made=40)
SEEN = Evidence("train", False, True, 12, RUNNING, True, HALFWAY, "megatron-vr: no", "12.log")


def job(state: str, reason: str = "") -> Evidence:
    return replace(SEEN, job=replace(RUNNING, state=state, reason=reason))


def test_a_running_stage_tells_how_far_and_how_fast_it_is() -> None:
    row = make_row(SEEN, NOW)
    assert (row.state, row.job, row.nodes, row.restarts) == ("running", 12, "gpu[1-2]", 1)
    assert (row.done, row.total, row.unit) == (140, 200, "steps")
    assert row.tokens_per_second == pytest.approx(200.0)
    assert row.eta_seconds == pytest.approx(600.0 - 10.0)
    assert (row.seconds, row.limit_seconds, row.quiet_seconds) == (500, 3600, 10.0)
    assert (row.error, row.log) == ("megatron-vr: no", "12.log")


def test_what_an_earlier_attempt_left_tells_no_speed() -> None:
    started_after = replace(RUNNING, starts=NOW - 5)
    row = make_row(replace(SEEN, job=started_after), NOW)
    assert (row.done, row.eta_seconds, row.tokens_per_second) == (140, None, None)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (replace(SEEN, done=True), ("done", "")),
        (job("PENDING", "Priority"), ("pending", "Priority")),
        (job("CONFIGURING"), ("pending", "configuring")),
        (job("COMPLETING"), ("ending", "completing")),
        (job("REQUEUE_HOLD"), ("held", "requeue hold")),
        (job("FAILED", "NonZeroExitCode"), ("failed", "")),
        (job("FAILED", "BadConstraints"), ("failed", "BadConstraints")),
        (job("TIMEOUT", "TimeLimit"), ("failed", "timeout")),
        (job("OUT_OF_MEMORY", "OutOfMemory"), ("failed", "out of memory")),
        (job("NODE_FAIL"), ("failed", "node fail")),
        (job("CANCELLED"), ("cancelled", "")),
        (job("CANCELLED", "Dependency"), ("cancelled", "what it waits for did not end well")),
        (job("COMPLETED"), ("not done", "its job ended well, but its results are not there")),
        (replace(SEEN, job=None), ("unknown", "Slurm no longer knows its job")),
        (replace(SEEN, job=None, asked=False), ("submitted", "")),
        (Evidence("a", False, True), ("begun", "")),
        (Evidence("a", False, False), ("to do", "")),
        (Evidence("a", True, True), ("done", "")),
    ],
)
def test_the_state_is_what_folder_and_slurm_say(seen: Evidence, expected: tuple[str, str]) -> None:
    assert state_of(seen) == expected


def test_without_slurm_a_stage_has_time_left_while_it_says_something() -> None:
    alone = Evidence("train", False, True, progress=HALFWAY)
    assert make_row(alone, NOW).eta_seconds == pytest.approx(590.0)
    silent = make_row(alone, NOW + 3600)
    assert (silent.state, silent.eta_seconds, silent.quiet_seconds) == ("begun", None, 3610.0)


def test_the_last_error_is_the_cause_and_not_its_consequences() -> None:
    log = """\
2026-11-22 job 12: start 1 on node1
megatron-vr: an older one
loss 3.2
megatron-vr: model.path: no such folder
srun: error: node1: task 0: Exited with exit code 1
megatron-vr: iteration-1/train failed with exit code 1; nodes: node1; log: 12.log
slurmstepd-node1: error: *** JOB 12 ON node1 CANCELLED ***
the word error: is nothing
"""
    assert last_error(log, "iteration-1/train") == "megatron-vr: model.path: no such folder"
    only_script = "\n".join(log.splitlines()[4:])
    assert last_error(only_script, "iteration-1/train") == log.splitlines()[5]
    only_slurm = log.splitlines()[6]
    assert last_error(f"a\n{only_slurm}\nb", "iteration-1/train") == only_slurm
    assert last_error("loss 3.2\nerror\n", "iteration-1/train") is None


def test_the_total_counts_states_and_takes_the_longest_time() -> None:
    rows = [
        make_row(replace(SEEN, done=True), NOW),
        make_row(SEEN, NOW),
        make_row(replace(SEEN, progress=replace(HALFWAY, total=140 + 600)), NOW),
        make_row(job("PENDING"), NOW),
        make_row(Evidence("a", False, False), NOW),
    ]
    # 600 steps at one in 10 s, less the 10 s since.
    assert total_line(rows) == "1 of 5 done, 2 running (about 1 h 40 min left), 1 pending"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (7500, "2 h 5 min"), (97_200, "27 h 0 min"),
     (200_000, "2 d 7 h")],
)  # fmt: skip
def test_durations_are_told_as_people_do(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:05", 5),
        ("12:34", 754),
        ("1:02:03", 3723),
        ("2-03:04:05", 183_845),
        ("UNLIMITED", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_slurms_times_are_read(text: str, seconds: int | None) -> None:
    assert read_time(text) == seconds


def test_the_accounting_is_read_where_a_name_holds_its_separator() -> None:
    line = b"7|CANCELLED by 1000|1-00:00:05|UNLIMITED|1795306281|None|gpu[1-2]|vr-0:a|b\n"
    (found,) = read_sacct(line)
    assert (found.id, found.state, found.name) == (7, "CANCELLED", "vr-0:a|b")
    assert (found.seconds, found.limit_seconds, found.starts) == (86_405, None, 1795306281)
    assert (found.nodes, found.reason, found.restarts) == ("gpu[1-2]", "", None)
    assert found.failed and not found.alive


# ---- The command, on folders as runs leave them -----------------------------------------------


def nodes_of(folder: Path, *overrides: str) -> list[Node]:
    """The plan of a small run; its settings are in its folder."""
    settings = load_settings(TOY, [f"run.folder={folder}", "comparisons={}", *overrides])
    content = yaml.safe_dump(settings.model_dump(mode="json"))
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(content)
    return list(make_plan(settings, {}).nodes)


def submitted(folder: Path, *overrides: str) -> RunFiles:
    """The same, as `submit` leaves it."""
    nodes_of(folder, *overrides)
    files = RunFiles(folder)
    files.folder.mkdir()
    (folder / "settings.yaml").rename(files.settings)
    return files


def call(folder: Path, *words: str, path: Path | None = None) -> Any:
    """`megatron-vr status` on a host without Slurm."""
    app = typer.Typer()
    app.command()(status)
    return CliRunner().invoke(app, [str(folder), *words], env={"PATH": str(path or folder)})


def rows_of(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    told = call(folder, "--json")
    assert told.exit_code == 0, told.output
    content = json.loads(told.stdout)
    return content, {row["stage"]: row for row in content["stages"]}


def test_a_run_without_slurm_is_told_from_its_folder(tmp_path: Path) -> None:
    nodes = {node.label: node for node in reversed(nodes_of(tmp_path / "run"))}
    for label in ("problems-train", "base"):
        nodes[label].folder.open()
        nodes[label].folder.finish(0)
    nodes["sft"].folder.open()
    text = json.dumps(vars(replace(HALFWAY, at=1000.0, began=900.0)))
    (nodes["sft"].path / PROGRESS).write_text(text)
    content, rows = rows_of(tmp_path / "run")
    assert (content["slurm"], content["done"], content["of"]) == (None, 2, len(rows))
    assert rows["iteration-0/base"]["state"] == "done"
    assert rows["iteration-1/train"]["state"] == "to do"
    sft = rows["iteration-0/sft"]
    assert (sft["state"], sft["done"], sft["total"]) == ("begun", 140, 200)
    assert (sft["eta_seconds"], sft["job"]) == (None, None)
    shown = call(tmp_path / "run").stdout
    assert "140/200 steps" in shown
    assert "2 of" in shown


def test_a_submitted_run_on_a_host_without_slurm_says_what_it_cannot_know(tmp_path: Path) -> None:
    files = submitted(tmp_path / "run", "cluster.benchmarks=[aime24]")
    add_submission(files, "iteration-0/sft", Submission(41, 1.0))
    add_submission(files, "iteration-0/sft", Submission(42, 2.0))
    settings = load_settings(files.settings)
    sft = next(j for j in make_jobs(make_plan(settings, {}), settings) if j.stage == "sft")
    files.log(sft, 42).parent.mkdir(parents=True)
    files.log(sft, 41).write_text("megatron-vr: of the first job\n")
    files.log(sft, 42).write_text("x\nmegatron-vr: of the second\nsrun: error: node\n")
    content, rows = rows_of(tmp_path / "run")
    assert "no Slurm on this host" in content["slurm"]
    assert rows["iteration-0/sft"]["state"] == "submitted"
    assert rows["iteration-0/sft"]["job"] == 42
    assert rows["iteration-0/sft"]["error"] == "megatron-vr: of the second"
    assert rows["iteration-0/sft"]["log"] == str(files.log(sft, 42))
    assert rows["iteration-0/export-policy"]["state"] == "to do"
    assert rows["benchmarks"]["state"] == "to do"
    shown = call(tmp_path / "run").stdout
    assert "no Slurm on this host" in shown
    assert "megatron-vr: of the second" in shown


def test_a_run_is_the_same_however_its_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes_of(tmp_path / "run", "run.iterations=2")
    (tmp_path / "other").mkdir()
    expected = rows_of(tmp_path / "run")[1]
    monkeypatch.chdir(tmp_path / "other")
    assert rows_of(Path("../run"))[1] == expected
    # A run that was moved is told where it is now.
    (tmp_path / "run").rename(tmp_path / "moved")
    assert rows_of(tmp_path / "moved")[1] == expected


def test_a_folder_of_no_run_is_one_clear_error(tmp_path: Path) -> None:
    told = call(tmp_path)
    assert told.exit_code == 1
    assert f"{tmp_path} is not the folder of a run" in told.stderr
    assert len(told.stderr.splitlines()) == 1


def test_a_folder_of_several_seeds_names_them(tmp_path: Path) -> None:
    for seed in (1, 2):
        nodes_of(tmp_path / f"seed-{seed}")
    told = call(tmp_path)
    assert told.exit_code == 1
    assert "it holds several: seed-1, seed-2" in told.stderr


def test_a_damaged_record_is_one_clear_error(tmp_path: Path) -> None:
    files = submitted(tmp_path / "run")
    files.record.write_text("{")
    told = call(tmp_path / "run")
    assert told.exit_code == 1
    assert f"{files.record} is damaged" in told.stderr


def test_watching_is_not_for_programs(tmp_path: Path) -> None:
    nodes_of(tmp_path / "run")
    told = call(tmp_path / "run", "--json", "--watch")
    assert told.exit_code == 2
    assert "--watch" in told.stderr


def test_watching_ends_when_all_is_done(tmp_path: Path) -> None:
    for node in nodes_of(tmp_path / "run"):
        node.folder.open()
        node.folder.finish(0)
    told = call(tmp_path / "run", "--watch")
    assert told.exit_code == 0
    assert "15 of 15 done" in " ".join(told.stdout.split())


def test_every_row_can_be_told_as_json() -> None:
    assert json.loads(json.dumps(vars(make_row(SEEN, NOW)))).keys() == Row.__annotations__.keys()
