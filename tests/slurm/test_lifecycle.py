"""Rendered scripts on a real Slurm: how jobs are told to stop, start again, and end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_vr.config.site_settings import ContainerSettings, SiteSettings
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import needs_slurm
from tests.slurm.lifecycle_jobs import Trial

# Works until it is told to stop; once started again, it is done.
SAVES_ONCE = "((starts > 0)) && exit 0; until_term 75"


def test_a_job_near_its_time_limit_saves_starts_again_and_finishes(
    slurm: Cluster, tmp_path: Path
) -> None:
    # One node saves for longer than Slurm waits with SIGKILL (KillWait=5).
    stage = "((starts > 0)) && exit 0; until_term 75 $((SLURM_NODEID * 6))"
    trial = Trial(slurm, tmp_path, stage, "cluster.save_seconds=50", time="1")
    assert trial.end() == "COMPLETED"
    assert len(trial.noted(r"^0 node\d stage saved")) == 2
    assert len(trial.noted(r"^1 node\d stage stage ")) == 2
    assert trial.shown("Restarts") == "1"
    assert "the time limit is near: telling iteration-1/train to save" in trial.log
    assert "it starts again (1 of 20 times)" in trial.log


def test_a_command_that_was_stopped_unasked_runs_again_until_the_restarts_are_used_up(
    slurm: Cluster, tmp_path: Path
) -> None:
    # First by a SIGTERM that it does not handle yet.
    stage = "((starts > 0)) && exit 75; kill -TERM $$; sleep 1"
    trial = Trial(slurm, tmp_path, stage, "cluster.restarts=1", kind="cpu", nodes=1)
    assert trial.end() == "FAILED"
    assert trial.shown("ExitCode") == "75:0"
    assert len(trial.noted("stage stage")) == 2
    assert "as often as cluster.restarts allows" in trial.last_words


def test_a_job_that_scancel_ends_stays_ended(slurm: Cluster, tmp_path: Path) -> None:
    trial = Trial(slurm, tmp_path, "until_term 75")
    trial.wait_for("ready", 2)
    slurm.run("scancel", str(trial.id))
    assert trial.end() == "CANCELLED"
    slurm.wait_until(lambda: "Slurm itself ends this job" in trial.log, 10)
    time.sleep(1)
    assert slurm.state(trial.id) == "CANCELLED"
    assert trial.shown("Restarts") == "0"


@pytest.mark.parametrize("whole_run", [True, False])
def test_no_cancelled_job_starts_again(slurm: Cluster, tmp_path: Path, whole_run: bool) -> None:
    trial = Trial(slurm, tmp_path, "until_term 75")
    trial.wait_for("ready", 2)
    files = trial.files
    mark = files.cancelled if whole_run else files.cancelled_job(trial.job.name, trial.id)
    mark.touch()
    trial.tell("USR1")
    assert trial.end() == "FAILED"
    assert "after it was cancelled" in trial.last_words
    assert trial.shown("Restarts") == "0"


def faulty(folder: Path, program: str, fault: str) -> SiteSettings:
    """A site where `program` of Slurm's is itself after the lines `fault`, and no pause is long."""
    path = folder / "bin" / program
    path.parent.mkdir()
    path.write_text(f'#!/bin/bash\n{fault}\nexec "$(PATH=$REAL_PATH; type -P {program})" "$@"\n')
    path.chmod(0o755)
    brief = "sleep() { command sleep 0.1; }"
    return SiteSettings(setup=f"export REAL_PATH=$PATH PATH={path.parent}:$PATH\n{brief}")


def test_a_job_that_was_cancelled_between_two_attempts_to_requeue_it_stays_ended(
    slurm: Cluster, tmp_path: Path
) -> None:
    fault = (
        f"echo $1 >> {tmp_path}/asked\n"
        f"if [[ $1 == requeue && ! -e {tmp_path}/tried ]]; then\n"
        f"    touch {tmp_path}/tried; scancel $SLURM_JOB_ID; exit 1\n"
        "fi"
    )
    site = faulty(tmp_path, "scontrol", fault)
    trial = Trial(slurm, tmp_path, "exit 75", kind="cpu", nodes=1, site=site)
    slurm.wait_until((tmp_path / "tried").exists)
    slurm.wait_until(lambda: "Slurm itself ends this job" in trial.log, 20)
    assert trial.end() == "CANCELLED"
    assert (tmp_path / "asked").read_text().split().count("requeue") == 1
    assert trial.shown("Restarts") == "0"


def test_a_job_that_saved_waits_for_an_absent_controller_and_starts_again(
    slurm: Cluster, tmp_path: Path
) -> None:
    # More often than anything else is tried.
    fault = (
        f"echo >> {tmp_path}/asked; (($(wc -l < {tmp_path}/asked) > 12)) || "
        '{ echo "squeue: error: Unable to contact slurm controller" >&2; exit 1; }'
    )
    site = faulty(tmp_path, "squeue", fault)
    stage = "((starts > 0)) && exit 0; exit 75"
    trial = Trial(slurm, tmp_path, stage, kind="cpu", nodes=1, site=site)
    assert trial.end() == "COMPLETED"
    assert trial.log.count("Slurm does not answer: squeue: error: Unable to contact") == 12
    assert trial.shown("Restarts") == "1"


def test_a_failing_job_keeps_its_exit_code_and_names_its_nodes_and_log(
    slurm: Cluster, tmp_path: Path
) -> None:
    trial = Trial(slurm, tmp_path, "exit 3")
    assert trial.end() == "FAILED"
    assert trial.shown("ExitCode") == "3:0"
    nodes = " ".join(event.split()[1] for event in sorted(trial.noted("stage stage")))
    assert trial.last_words == (
        f"megatron-vr: iteration-1/train failed with exit code 3; nodes: {nodes}; "
        f"log: {trial.files.log(trial.job, trial.id)}"
    )


def test_a_node_that_is_judged_bad_is_not_used_again(slurm: Cluster, tmp_path: Path) -> None:
    blame = (
        "((starts > 0)) && exit 0\n"
        '[[ $SLURM_NODEID == 1 ]] && echo "$SLURMD_NODENAME rank 1 was killed by SIGKILL" '
        '>> "$MEGATRON_VR_FAILED_NODES"\nexit 1'
    )
    trial = Trial(slurm, tmp_path, blame, flags=["--exclude=node1"])
    after = f"afterok:{trial.id}"
    child = slurm.run("sbatch", "--parsable", "-o", "/dev/null", "-d", after, "--wrap=true").stdout
    slurm.wait_until(lambda: "it starts again" in trial.log)
    bad = (trial.files.state(trial.job, trial.id) / "excluded").read_text().split()
    assert f"without node {bad[0]}, which failed; it starts again" in trial.last_words
    assert f"node {bad[0]} failed: rank 1 was killed by SIGKILL" in trial.log
    assert slurm.state(int(child)) == "PENDING"
    assert trial.end() == "COMPLETED"
    used = {event.split()[1] for event in trial.noted("^1 .*stage stage")}
    assert len(bad) == 1 and used == {"node2", "node3", "node4"} - set(bad)
    slurm.wait_until(lambda: slurm.state(int(child)) == "COMPLETED", 30)


def test_what_hangs_on_a_bad_node_is_ended_and_starts_again(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_vr.cluster.script.HANG_SECONDS", 1)
    hangs = (
        "((starts > 0)) && exit 0\n"
        '((SLURM_NODEID == 0)) && echo "$SLURMD_NODENAME is silent" >> "$MEGATRON_VR_FAILED_NODES"'
        "\nuntil_term 75 100"
    )
    trial = Trial(slurm, tmp_path, hangs)
    assert trial.end() == "COMPLETED"
    assert "a node failed: ending what is left" in trial.log
    assert trial.shown("Restarts") == "1"
    bad = trial.noted("^0 .*ready")
    assert len(bad) == 2 and len(trial.noted("^1 .*stage stage")) == 2


def test_a_job_that_lost_too_many_nodes_fails(slurm: Cluster, tmp_path: Path) -> None:
    blame = 'echo "$SLURMD_NODENAME fell off the bus" >> "$MEGATRON_VR_FAILED_NODES"; exit 1'
    trial = Trial(slurm, tmp_path, blame, "cluster.failed_nodes=1", nodes=1)
    assert trial.end() == "FAILED"
    first, second = (event.split()[1] for event in trial.noted("stage stage"))
    assert f"lost more nodes ({first} {second}) than cluster.failed_nodes=1" in trial.last_words


def test_a_preempted_job_saves_waits_for_the_other_and_finishes(
    slurm: Cluster, tmp_path: Path
) -> None:
    everything = ["--partition=low", "--exclusive"]
    trial = Trial(slurm, tmp_path, SAVES_ONCE, nodes=4, flags=everything)
    trial.wait_for("ready", 4)
    asked = ("--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null")
    urgent = int(slurm.run("sbatch", "--parsable", *asked, "--wrap=sleep 1").stdout)
    assert trial.end() == "COMPLETED"
    assert slurm.state(urgent) == "COMPLETED"
    assert len(trial.noted("^0 .* saved")) == 4
    assert trial.shown("Restarts") == "1"


@pytest.fixture
def strict_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One whose site requeues no job by itself."""
    needs_slurm()
    cluster = Cluster(tmp_path_factory.mktemp("own") / "c", nodes=3, extra=["JobRequeue=0"])
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def test_a_job_whose_node_goes_down_goes_on_elsewhere(
    strict_slurm: Cluster, tmp_path: Path
) -> None:
    trial = Trial(strict_slurm, tmp_path, SAVES_ONCE)
    trial.wait_for("ready", 2)
    lost = trial.noted("ready")[1].split()[1]
    strict_slurm.node_down(lost)
    assert trial.end() == "COMPLETED"
    used = {event.split()[1] for event in trial.noted("^1 .*stage stage")}
    assert len(used) == 2 and lost not in used


SERVES = "until_term 0"


def test_servers_run_on_each_node_until_their_client_ends(slurm: Cluster, tmp_path: Path) -> None:
    client = "while (($(grep -c 'serve ready' {}) < 2)); do sleep 0.1; done; note done; exit 0"
    client = client.format(tmp_path / "events")
    site = SiteSettings(exclusive=True)
    trial = Trial(slurm, tmp_path, client, kind="served", serve=SERVES, site=site, memory=None)
    assert trial.end() == "COMPLETED"
    # Of whole nodes, all the memory and all the cores.
    assert "mem=125G" in trial.shown("TRES") and "cpu=64" in trial.shown("TRES")
    assert len({event.split()[1] for event in trial.noted("serve ready")}) == 2
    assert len(trial.noted("serve saved")) == 2
    events = trial.events
    done = next(n for n, event in enumerate(events) if event.endswith("stage done"))
    assert all(n > done for n, event in enumerate(events) if event.endswith("serve TERM"))
    ports = {event.split("launch.port=")[1] for event in trial.noted("launch.port=")}
    assert len(ports) == 2
    assert f"--model {tmp_path}/a model --hosts" in trial.noted("serve serve")[0]


def test_servers_go_on_until_a_client_that_is_told_to_stop_has_saved(
    slurm: Cluster, tmp_path: Path
) -> None:
    client = "((starts > 0)) && exit 0; until_term 75 2"
    trial = Trial(slurm, tmp_path, client, kind="served", serve=SERVES)
    trial.wait_for("ready", 3)
    trial.tell("USR1")
    assert trial.end() == "COMPLETED"
    first = [event for event in trial.events if event.startswith("0 ")]
    saved = next(n for n, event in enumerate(first) if event.endswith("stage saved"))
    assert next(n for n, event in enumerate(first) if event.endswith("serve TERM")) > saved
    assert trial.shown("Restarts") == "1"


def test_a_job_whose_servers_all_die_fails(slurm: Cluster, tmp_path: Path) -> None:
    trial = Trial(slurm, tmp_path, "until_term 75", kind="served", serve="sleep 1; exit 1")
    assert trial.end(90) == "FAILED"
    assert trial.shown("ExitCode") == "1:0"
    assert "the servers ended (exit code 1) before their client" in trial.log
    assert trial.shown("Restarts") == "0"


APPTAINER = """#!/bin/bash
echo "$@" >> {folder}/apptainer
while [[ $1 != image.sif ]]; do shift; done
shift
exec "$@"
"""


def test_a_container_gets_its_folders_the_environment_and_the_servers_key(
    slurm: Cluster, tmp_path: Path
) -> None:
    program = tmp_path / "bin/apptainer"
    program.parent.mkdir()
    program.write_text(APPTAINER.format(folder=tmp_path))
    program.chmod(0o755)
    site = SiteSettings(
        setup=f"PATH={program.parent}:$PATH",
        environment={"GREETING": "two 'quoted' words"},
        container=ContainerSettings(kind="apptainer", image="image.sif", mounts=("/data:/d",)),
    )
    tell = f'echo "$verb $MEGATRON_VR_API_KEY" >> {tmp_path}/keys; note "$GREETING in $PWD"'
    client = f"until grep -q serve {tmp_path}/keys; do sleep 0.1; done; {tell}; exit 0"
    serve = f"{tell}; until_term 0"
    trial = Trial(slurm, tmp_path, client, kind="served", serve=serve, nodes=1, site=site)
    assert trial.end() == "COMPLETED"
    assert len(trial.noted(f"two 'quoted' words in {tmp_path}$")) == 2
    keys = {line.split()[1] for line in (tmp_path / "keys").read_text().splitlines()}
    assert len(keys) == 1 and len(min(keys)) == 48
    for file in trial.files.folder.rglob("*"):
        assert file.is_dir() or min(keys) not in file.read_text()
    run = trial.files.run
    mounts = f"--bind {run}:{run} --bind {tmp_path}:{tmp_path} --bind /data:/d"
    wanted = f"exec --nv --pwd {tmp_path} {mounts} image.sif env -u RANK "
    assert any(
        line.startswith(wanted) for line in (tmp_path / "apptainer").read_text().splitlines()
    )


def test_a_task_that_hangs_after_another_failed_is_ended(slurm: Cluster, tmp_path: Path) -> None:
    hangs = "((SLURM_NODEID == 1)) && exit 1; trap '' TERM; while true; do sleep 0.2; done"
    site = SiteSettings(srun_flags=("--wait=2",))
    trial = Trial(slurm, tmp_path, hangs, site=site)
    assert trial.end(90) == "FAILED"
    assert "failed with exit code" in trial.last_words


def test_a_job_that_is_told_to_stop_during_its_setup_starts_again(
    slurm: Cluster, tmp_path: Path
) -> None:
    setup = f"touch {tmp_path}/setup; ((starts > 0)) || sleep 2"
    trial = Trial(slurm, tmp_path, "exit 0", nodes=1, site=SiteSettings(setup=setup))
    slurm.wait_until((tmp_path / "setup").exists)
    trial.tell("TERM")
    assert trial.end() == "COMPLETED"
    assert [event[0] for event in trial.events] == ["1"]
