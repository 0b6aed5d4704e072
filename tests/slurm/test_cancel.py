"""`cancel` and `status` on a real Slurm, with jobs that only wait."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cli_status import cancel, status
from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.jobs import slurm_prefix
from megatron_vr.cluster.record import Submission, add_submission
from megatron_vr.cluster.slurm import Slurm
from megatron_vr.config.load import load_settings
from tests.algorithm.tiny_run import TOY
from tests.slurm.cluster import Cluster

SFT, EXPORT, EVALUATE = (f"iteration-0/{name}" for name in ("sft", "export-policy", "evaluate"))


class Run:
    """A submitted run whose jobs do `body` in place of their stages."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder, self.cluster = folder, cluster
        self.slurm = Slurm(cluster.environment)
        self.files = RunFiles(folder)
        settings = load_settings(TOY, [f"run.folder={folder}", "comparisons={}"])
        self.names = [
            node.path.relative_to(folder).as_posix() for node in make_plan(settings, {}).nodes
        ]
        self.files.folder.mkdir(parents=True)
        self.files.settings.write_text(yaml.safe_dump(settings.model_dump(mode="json")))

    def submit(self, name: str, *parents: int, body: str = "sleep 120", record: bool = True) -> int:
        script = self.files.folder / f"{name.replace('/', '.')}.sh"
        log = self.files.folder / "logs" / f"{name.replace('/', '.')}-%j.log"
        log.parent.mkdir(exist_ok=True)
        script.write_text(
            f"#!/bin/bash\n#SBATCH --job-name={slurm_prefix(self.folder)}{name}\n"
            f"#SBATCH --output={log} --open-mode=append --requeue\n{body}\n"
        )
        number = self.slurm.submit(script, parents)
        if record:
            add_submission(self.files, name, Submission(number, time.time()))
        return number

    def call(self, *words: str) -> Result:
        app = typer.Typer()
        app.command()(status)
        app.command()(cancel)
        verb, *rest = words
        environment = {"SLURM_CONF": self.cluster.environment["SLURM_CONF"]}
        return CliRunner().invoke(app, [verb, str(self.folder), *rest], env=environment)

    def states(self) -> dict[str, str]:
        told = self.call("status", "--json")
        assert told.exit_code == 0, told.output
        rows = json.loads(told.stdout)["stages"]
        return {row["stage"]: row["state"] for row in rows if row["state"] != "to do"}

    def row(self, name: str) -> dict[str, object]:
        rows = json.loads(self.call("status", "--json").stdout)["stages"]
        found: dict[str, object] = next(row for row in rows if row["stage"] == name)
        return found

    def marked(self) -> set[str]:
        """The state folders of jobs that do not start again."""
        return {mark.parent.name for mark in self.files.folder.glob("state/*/cancelled")}

    def ended(self, *words: str) -> dict[str, int]:
        told = self.call("cancel", "--json", *words)
        assert told.exit_code == 0, told.output
        return {one["stage"]: one["job"] for one in json.loads(told.stdout)}


@pytest.fixture
def run(slurm: Cluster, tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "run", slurm)
    yield made
    left = made.slurm.named(slurm_prefix(made.folder))
    made.slurm.cancel(job.id for jobs in left.values() for job in jobs if job.alive)


def test_a_run_is_cancelled_with_all_its_jobs_and_no_others(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "run2", run.cluster)
    kept = other.submit(SFT)
    first = run.submit(SFT)
    second = run.submit(EXPORT, first)
    # `submit` was killed before it could record this one.
    third = run.submit(EVALUATE, second, record=False)
    run.cluster.wait_until(lambda: run.states().get(SFT) == "running")
    assert run.states() == {SFT: "running", EXPORT: "pending", EVALUATE: "pending"}
    assert run.row(EVALUATE)["job"] == third
    assert not run.files.cancelled.exists()

    assert run.ended() == {SFT: first, EXPORT: second, EVALUATE: third}
    assert run.files.cancelled.exists()
    # These outlive the next `submit`, which ends the mark of the whole run.
    assert run.marked() == {f"iteration-0.sft-{first}", f"iteration-0.export-policy-{second}"} | {
        f"iteration-0.evaluate-{third}"
    }
    run.cluster.wait_until(lambda: run.states()[SFT] == "cancelled")
    assert run.states()[EXPORT] == "cancelled"
    assert run.ended() == {}
    assert "nothing is queued or running" in run.call("cancel").stdout
    assert other.slurm.jobs([kept])[kept].alive
    assert other.ended() == {SFT: kept}


def test_one_stage_is_cancelled_alone_and_the_run_may_go_on(run: Run) -> None:
    first, second = run.submit(SFT), run.submit("iteration-1/posterior")
    assert run.ended("--stage", "sft") == {SFT: first}
    assert not run.files.cancelled.exists()
    assert run.marked() == {f"iteration-0.sft-{first}"}
    assert run.slurm.jobs([second])[second].alive
    assert run.ended("--stage", "iteration-1/posterior") == {"iteration-1/posterior": second}


def test_a_stage_that_is_none_is_refused(run: Run) -> None:
    first = run.submit(SFT)
    told = run.call("cancel", "--stage", "posteriour")
    assert told.exit_code == 2
    assert "--stage posteriour is no stage of this run" in told.stderr
    assert "posterior" in told.stderr.replace("posteriour", "")
    assert run.slurm.jobs([first])[first].alive


def test_a_failing_stage_and_those_behind_it_are_told_with_its_error(run: Run) -> None:
    failing = run.submit(SFT, body="sleep 2; echo 'megatron-vr: train.steps: 0' >&2; exit 2")
    run.submit(EXPORT, failing)
    run.cluster.wait_until(lambda: run.states()[EXPORT] == "cancelled")
    row = run.row(SFT)
    assert (row["state"], row["error"]) == ("failed", "megatron-vr: train.steps: 0")
    assert str(row["log"]).endswith(f"iteration-0.sft-{failing}.log")
    shown = run.call("status").stdout
    assert "megatron-vr: train.steps: 0" in shown
    assert "1 failed, 1 cancelled" in shown


def test_a_job_that_started_again_says_how_often(run: Run) -> None:
    body = '[[ ${SLURM_RESTART_COUNT:-0} == 1 ]] || scontrol requeue "$SLURM_JOB_ID"; sleep 60'
    number = run.submit(SFT, body=body)
    run.cluster.wait_until(lambda: run.row(SFT)["restarts"] == 1)
    run.cluster.wait_until(lambda: run.row(SFT)["state"] == "running")
    assert run.row(SFT)["job"] == number
    assert "requeued once" in " ".join(run.call("status").stdout.split())


def test_a_job_that_ended_well_without_results_is_not_done(run: Run) -> None:
    run.submit(SFT, body="true")
    run.cluster.wait_until(lambda: run.states()[SFT] == "not done")
    run.submit(SFT)
    run.cluster.wait_until(lambda: run.states()[SFT] == "running")


def test_with_a_dead_controller_the_run_is_marked_and_the_error_is_clear(
    own_slurm: Cluster, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", own_slurm)
    number = run.submit(SFT)
    own_slurm.stop_controller()
    told = run.call("cancel")
    assert told.exit_code == 1
    assert "controller does not answer" in told.stderr
    # So that nothing starts again when it is back.
    assert run.files.cancelled.exists()
    assert run.states() == {SFT: "submitted"}
    shown = " ".join(run.call("status").stdout.split())
    assert "controller does not answer" in shown
    assert str(number) in shown


def test_a_run_without_jobs_has_nothing_to_cancel(slurm: Cluster, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", slurm)
    run.files.settings.rename(tmp_path / "run/settings.yaml")
    told = run.call("cancel")
    assert told.exit_code == 1
    assert "has no jobs" in told.stderr
