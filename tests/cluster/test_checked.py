"""What is found out before a job is queued."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cluster.checked import check_jobs, check_programs, coreless
from megatron_vr.cluster.frozen_settings import check_frozen, freeze
from megatron_vr.cluster.job import RunFiles
from megatron_vr.cluster.jobs import make_jobs, slurm_prefix
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.config.site_settings import SiteSettings
from megatron_vr.errors import SettingsError, StageError

TOY = Path("examples/toy.yaml")


def settings_of(folder: Path, *words: str) -> Settings:
    return load_settings(TOY, ["comparisons={}", f"run.folder={folder}", *words])


def check(settings: Settings, *, installed_here: bool = True) -> None:
    plan = make_plan(settings, {})
    check_jobs(plan, make_jobs(plan, settings), settings, installed_here=installed_here)


def test_a_layout_that_does_not_divide_a_jobs_ranks_is_named_with_its_stages(
    tmp_path: Path,
) -> None:
    words = ("cluster.train={nodes: 3, gpus: 1}", "cluster.score={gpus: 2}", "parallel.tensor=2")
    with pytest.raises(SettingsError) as told:
        check(settings_of(tmp_path, *words))
    lines = str(told.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        *("jobs of sft", "jobs of posterior", "jobs of train"),
    ]
    assert "does not divide the 3 processes" in lines[0]


def test_a_number_of_processes_that_is_not_the_jobs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"parallel\.processes is 4, .* 1 nodes × 8"):
        check(settings_of(tmp_path, "parallel.processes=4"))


def test_what_only_jobs_have_installed_is_not_looked_for_here(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "model.spec=te", "model.dtype=bfloat16")
    check(settings, installed_here=False)
    with pytest.raises(SettingsError, match="Transformer Engine is not installed"):
        check(settings)


def test_servers_whose_python_is_missing_are_refused_before_days_of_training(
    tmp_path: Path,
) -> None:
    launch = f"engine.servers.launch={{program: {tmp_path / 'python'}}}"
    settings = settings_of(tmp_path / "run", "engine.kind=vllm", launch)
    plan = make_plan(settings, {})
    jobs = make_jobs(plan, settings)
    with pytest.raises(SettingsError, match=r"program is .*python, which iteration-0/evaluate"):
        check_programs(plan, jobs, settings)
    (tmp_path / "python").touch(mode=0o755)
    check_programs(plan, jobs, settings)


def test_ranks_that_would_share_a_core_are_noted(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "cluster.train={cpus: 64}", "cluster.sample={cpus: 64}")
    jobs = make_jobs(make_plan(settings, {}), settings)
    (note,) = coreless(jobs, SiteSettings())
    assert "jobs of score ask for GPUs and for no cores" in note
    assert not list(coreless(jobs, SiteSettings(exclusive=True)))


def test_a_run_has_one_name_however_its_folder_is_spelled(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    names = {
        slurm_prefix(tmp_path / spelling)
        for spelling in ("real/run", "link/run", "real/../real/run")
    }
    assert len(names) == 1


def test_settings_that_queued_jobs_read_must_stay_and_shapes_may_change(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    freeze(settings_of(tmp_path), files)
    more = settings_of(tmp_path, "cluster.restarts=40", "cluster.train={memory: 900G}")
    check_frozen(more, files, ["iteration-0/sft (7)"])
    other = settings_of(tmp_path, "train.steps=7")
    check_frozen(other, files, [])
    with pytest.raises(StageError, match=r"train\.steps: 180 → 7.*iteration-0/sft \(7\)"):
        check_frozen(other, files, ["iteration-0/sft (7)"])


def test_the_settings_that_jobs_read_are_those_of_the_run(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    settings = settings_of(
        tmp_path, "cluster.benchmarks=[aime24]", "comparisons={rft: {traces.sampler: policy}}"
    )
    freeze(settings, files)
    assert load_settings(files.settings) == settings
