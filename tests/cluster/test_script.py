"""Scripts of jobs: kept ones, templates of a site, and what no script can hold."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.script import render
from megatron_vr.config.site_settings import ContainerSettings, SiteSettings
from megatron_vr.errors import SettingsError
from tests.cluster.golden import chain

README = chain.ROOT / "slurm/README.md"


def rendered(
    job: str = "weigh",
    site: SiteSettings | None = None,
    files: RunFiles = chain.FILES,
    *overrides: str,
    **changes: object,
) -> str:
    shape = replace(chain.JOBS[job].shape, **changes)  # type: ignore[arg-type]
    return render(
        replace(chain.JOBS[job], shape=shape),
        files,
        chain.settings_of(*overrides),
        site or SiteSettings(),
        name="vr-1:job",
        folder=Path("/home/ada"),
        python=Path("/usr/bin/python3"),
    )


def sbatch_lines(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]


@pytest.mark.parametrize(("site", "job"), chain.KEPT)
def test_the_scripts_of_a_32b_run_are_those_that_are_kept(site: str, job: str) -> None:
    assert chain.script(site, job) == chain.golden(site, job).read_text(), (
        "changed on purpose? `python -m tests.cluster.golden.chain` writes them anew; "
        "read the difference"
    )


@pytest.mark.parametrize(("site", "job"), chain.KEPT)
def test_bash_reads_every_script(site: str, job: str) -> None:
    subprocess.run(["bash", "-n", chain.golden(site, job)], check=True)


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck: not installed")
    scripts = [str(chain.golden(*pair)) for pair in chain.KEPT]
    # SC2034: not every kind of job uses `port` and `first_node`. SC2054: flags hold commas.
    words = ["shellcheck", "--severity=warning", "--exclude=SC2034,SC2054", *scripts]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.stdout == ""


# Stands for a program of Slurm's: says what it was started with, word by word.
PROGRAM = """#!/bin/bash
printf '%s\\n' "$PWD" "$GREETING" "$@" >> "$0.told"
"""
# What some of them say or do beside that.
MORE = {"squeue": "echo RUNNING"}


def run_outside(text: str, folder: Path, more: Mapping[str, str] = MORE, **variables: str) -> int:
    """The exit code of a script where the programs of Slurm's, in folder/bin, do `more` at most."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in ("srun", "scontrol", "squeue", "scancel"):
        (bin_ / name).write_text(PROGRAM + more.get(name, ""))
        (bin_ / name).chmod(0o755)
    path = f"{bin_}:{os.environ['PATH']}"
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = own | {"PATH": path, "SLURM_JOB_ID": "7", **variables}
    # No pipes: a pause that is left over would keep them open.
    return subprocess.run(
        ["bash", "-c", text],
        env=environment,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    ).returncode


def test_odd_folders_and_values_reach_the_command_as_they_are(tmp_path: Path) -> None:
    run = tmp_path / """it's "a" $HOME run; 100% `new` & \\n"""
    greeting = 'don\'t "$HOME" `date` \\ *'
    site = SiteSettings(environment={"GREETING": greeting})
    assert run_outside(rendered("weigh", site, RunFiles(run)), tmp_path) == 0
    told = (tmp_path / "bin/srun.told").read_text().splitlines()
    assert told[:2] == [str(tmp_path), greeting]
    assert told[-3:] == ["stage", str(run / "slurm/settings.yaml"), "iteration-1/weigh"]
    assert (run / "slurm/state/iteration-1.weigh-7").is_dir()


def test_a_job_that_was_given_no_gpus_this_time_starts_again(tmp_path: Path) -> None:
    text = rendered("train", None, RunFiles(tmp_path / "run"))
    state = tmp_path / "run/slurm/state/iteration-1.train-7"
    state.mkdir(parents=True)
    (state / "had-gpus").touch()
    assert run_outside(text, tmp_path, SLURM_RESTART_COUNT="1") == 75
    assert "requeue\n7\n" in (tmp_path / "bin/scontrol.told").read_text()
    assert not (tmp_path / "bin/srun.told").exists()


def asked_to_requeue(folder: Path) -> int:
    return (folder / "bin/scontrol.told").read_text().splitlines().count("requeue")


# No pause is one.
BRIEF = "sleep() { :; }\n"
SILENT = "echo 'error: Unable to contact slurm controller' >&2; exit 1"


def test_a_job_that_is_cancelled_between_two_attempts_to_requeue_it_ends(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    text = rendered("weigh", SiteSettings(setup=BRIEF), files)
    mark = files.cancelled_job("iteration-1/weigh", 7)
    refuses = f"[[ $1 != requeue ]] || {{ touch {mark}; exit 1; }}"
    more = MORE | {"srun": "exit 75", "scontrol": refuses}
    assert run_outside(text, tmp_path, more) == 75
    assert asked_to_requeue(tmp_path) == 1


def test_a_job_that_was_cancelled_while_it_waited_does_no_work(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    mark = files.cancelled_job("iteration-1/weigh", 7)
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert run_outside(rendered("weigh", None, files), tmp_path) == 1
    assert not (tmp_path / "bin/srun.told").exists()


def test_a_job_of_which_slurm_says_nothing_is_requeued_when_its_time_is_nearly_over(
    tmp_path: Path,
) -> None:
    site = SiteSettings(setup=f"{BRIEF}SECONDS={4 * 3600 - 20}")
    more = {"srun": "exit 75", "squeue": SILENT}
    assert run_outside(rendered("weigh", site, RunFiles(tmp_path / "run")), tmp_path, more) == 75
    assert asked_to_requeue(tmp_path) == 1


@pytest.mark.parametrize("answer", ["exit 0", "echo 'error: Invalid job id specified' >&2; exit 1"])
def test_a_job_that_slurm_has_forgotten_is_not_requeued(tmp_path: Path, answer: str) -> None:
    more = {"srun": "exit 75", "squeue": answer}
    assert run_outside(rendered("weigh", None, RunFiles(tmp_path / "run")), tmp_path, more) == 75
    assert asked_to_requeue(tmp_path) == 0


def test_a_failed_job_does_not_wait_long_for_an_absent_controller(tmp_path: Path) -> None:
    text = rendered("weigh", SiteSettings(setup=BRIEF), RunFiles(tmp_path / "run"))
    assert run_outside(text, tmp_path, {"srun": "exit 3", "squeue": SILENT}) == 3
    asked = (tmp_path / "bin/squeue.told").read_text().splitlines()
    assert 1 < asked.count("--format=%T") < 10
    assert asked_to_requeue(tmp_path) == 0


def test_all_memory_of_whole_nodes_is_asked_for_unless_the_settings_say_how_much() -> None:
    whole = SiteSettings(exclusive=True)
    assert "--mem=0" in sbatch_lines(rendered("train", whole, memory=None))
    assert "--mem=90G" in sbatch_lines(rendered("train", whole, memory="90G"))
    by_gpu = sbatch_lines(rendered("train", whole, memory="0", flags=("--mem-per-gpu=90G",)))
    assert [line for line in by_gpu if line.startswith("--mem")] == ["--mem-per-gpu=90G"]
    for job, site in (("train", SiteSettings()), ("weigh", whole)):
        lines = sbatch_lines(rendered(job, site, memory=None))
        assert not any(line.startswith("--mem") for line in lines)


PYXIS = ContainerSettings(kind="pyxis", image="i.sqsh")


def test_values_of_the_job_go_before_those_of_a_pyxis_image() -> None:
    site = SiteSettings(container=PYXIS, environment={"HF_HOME": "/h", "NCCL_DEBUG": "INFO"})
    text = rendered("sample", site, chain.FILES, "engine.servers.api_key_variable=MY_KEY")
    (flag,) = (word for word in text.split() if word.startswith("--container-env="))
    names = flag.removeprefix("--container-env=").split(",")
    wanted = {"HF_HOME", "MY_KEY", "MEGATRON_VR_FAILED_NODES", "HF_TOKEN", "PYTHONUNBUFFERED"}
    assert wanted <= set(names)
    assert len(names) == len(set(names))
    # All that the script itself exports, but what is for the script alone.
    exported = set(re.findall(r"^ +export (\w+)=", text, re.MULTILINE))
    assert exported <= set(names)


def test_a_launch_that_a_container_pretends_to_be_part_of_is_not_seen_by_the_command(
    tmp_path: Path,
) -> None:
    # As enroot's hook does for images of PyTorch: after everything of the script's own.
    program = 'while [[ $1 != "env" ]]; do shift; done; RANK=5 MASTER_ADDR=x WORLD_SIZE=9 "$@"'
    told = tmp_path / "environment"
    own = tmp_path / "megatron-vr"
    own.write_text(f"#!/bin/bash\nenv > {told}\n")
    own.chmod(0o755)
    site = SiteSettings(container=PYXIS, command=str(own))
    text = rendered("weigh", site, RunFiles(tmp_path / "run"))
    assert run_outside(text, tmp_path, MORE | {"srun": program}, LOCAL_RANK="3") == 0
    names = {line.partition("=")[0] for line in told.read_text().splitlines()}
    assert "SLURM_JOB_ID" in names
    assert not names & {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"}


def test_in_apptainer_the_launch_is_forgotten_inside() -> None:
    image = ContainerSettings(kind="apptainer", image="i.sif")
    text = rendered("train", SiteSettings(container=image))
    assert re.search(r"i\.sif env (-u \w+ )*-u RANK (-u \w+ )*megatron-vr\)", text)


def test_jobs_with_gpus_and_without_go_to_their_partitions() -> None:
    site = SiteSettings(
        gpu_partition="h100", cpu_partition="cheap", gpu_request="--gres=gpu:h100:{gpus}"
    )
    train, weigh = sbatch_lines(rendered("train", site)), sbatch_lines(rendered("weigh", site))
    assert {"--partition=h100", "--gres=gpu:h100:8"} <= set(train)
    assert "--partition=cheap" in weigh and not any("gpu" in line for line in weigh)
    assert "--partition=own" in sbatch_lines(rendered("train", site, partition="own"))
    assert "--exclusive" not in train
    exclusive = SiteSettings(exclusive=True)
    assert "--exclusive" in sbatch_lines(rendered("train", exclusive))
    assert "--exclusive" not in sbatch_lines(rendered("weigh", exclusive))


def test_the_flags_of_a_job_come_after_those_of_the_site() -> None:
    text = rendered("train", SiteSettings(flags=("--nice=1",)), flags=("--nice=5",))
    assert sbatch_lines(text)[-2:] == ["--nice=1", "--nice=5"]


def test_a_percent_sign_in_a_folder_is_none_of_sbatchs() -> None:
    lines = sbatch_lines(rendered("weigh", None, RunFiles(Path("/runs/50%j"))))
    assert "--output=/runs/50%%j/slurm/logs/iteration-1.weigh-%j.log" in lines


def test_the_key_has_the_name_that_the_engine_reads() -> None:
    text = rendered("sample", None, chain.FILES, "engine.servers.api_key_variable=MY_KEY")
    assert 'export MY_KEY="${MY_KEY:-$(od ' in text
    assert "MEGATRON_VR_API_KEY" not in text


def test_a_site_replaces_or_extends_a_template(tmp_path: Path) -> None:
    own = '{% extends "shipped/cpu.sh.jinja" %}\n{% block work %}\n    echo {{ job.name }}\n'
    (tmp_path / "cpu.sh.jinja").write_text(own + "{% endblock %}\n")
    site = SiteSettings(templates=tmp_path)
    assert "\n    echo iteration-1/weigh\n}" in rendered("weigh", site)
    assert "--node-rank" in rendered("train", site)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{% block work %}", r"cpu\.sh\.jinja, line 1 cannot be read: .*block"),
        ("one\n{{ job.nodes }}", r"cpu\.sh\.jinja, line 2, failed for iteration-1/weigh: .*nodes"),
        ("one\n{{ 1 // 0 }}", r"cpu\.sh\.jinja, line 2, failed .*ZeroDivisionError"),
        ('{% include "missing.sh" %}', "failed .*missing.sh"),
    ],
)
def test_a_broken_template_is_named_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "cpu.sh.jinja").write_text(text)
    with pytest.raises(SettingsError, match=told):
        rendered("weigh", SiteSettings(templates=tmp_path))


def test_a_folder_without_any_known_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cpu.sh").write_text("")
    with pytest.raises(SettingsError, match=r"has none of the templates .*cpu\.sh\.jinja"):
        rendered("weigh", SiteSettings(templates=tmp_path))
    with pytest.raises(SettingsError, match="is no folder"):
        rendered("weigh", SiteSettings(templates=tmp_path / "absent"))


def test_what_no_script_can_hold_is_refused() -> None:
    with pytest.raises(SettingsError, match="no line end"):
        rendered("train", SiteSettings(flags=("--comment=a\n#SBATCH --nodes=99",)))
    with pytest.raises(SettingsError, match="'MY-VAR' is no name"):
        rendered("train", SiteSettings(environment={"MY-VAR": "1"}))
    image = ContainerSettings(kind="apptainer", image="i.sif")
    with pytest.raises(SettingsError, match="cannot mount '/runs/a:b'"):
        rendered("train", SiteSettings(container=image), RunFiles(Path("/runs/a:b")))


def test_a_job_needs_time_before_it_is_told_to_save() -> None:
    with pytest.raises(SettingsError, match="iteration-1/train: with a time limit of 15:00 it wou"):
        rendered("train", time="15:00")
    rendered("train", time="15:01")
    with pytest.raises(SettingsError, match="save_seconds is 65536; Slurm's largest is 65535"):
        rendered("train", None, chain.FILES, "cluster.save_seconds=65536")


def test_the_readme_explains_every_key_of_a_site_file() -> None:
    text = README.read_text()
    keys = [*SiteSettings.model_fields, *(f"container.{k}" for k in ContainerSettings.model_fields)]
    assert [key for key in keys if f"`{key}`" not in text] == []
