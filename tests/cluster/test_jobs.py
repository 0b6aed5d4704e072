"""The jobs of a run: kinds, shapes, parents, and parts of a chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cluster.job import Job
from megatron_vr.cluster.jobs import make_jobs, select, slurm_prefix
from megatron_vr.config.load import load_settings
from megatron_vr.errors import SettingsError

TOY = Path("examples/toy.yaml")
SERVED = (
    "engine.kind=vllm",
    "engine.servers.launch={replicas: 4, gpus: 2}",
    "cluster.train={nodes: 2}",
    "cluster.sample={nodes: 3}",
)


def jobs_of(*overrides: str) -> dict[str, Job]:
    settings = load_settings(TOY, ["comparisons={}", *overrides])
    return {job.name: job for job in make_jobs(make_plan(settings, {}), settings)}


def test_each_stage_is_a_job_and_comes_after_what_it_reads() -> None:
    jobs = jobs_of()
    assert list(jobs) == [
        *("iteration-0/problems-train", "iteration-0/problems-test", "iteration-0/base"),
        *("iteration-0/sft", "iteration-0/export-policy", "iteration-0/evaluate"),
        *("iteration-1/posterior", "iteration-1/export-posterior"),
        *("iteration-1/sample-posterior", "iteration-1/score", "iteration-1/answer"),
        *("iteration-1/weigh", "iteration-1/train", "iteration-1/export-policy"),
        "iteration-1/evaluate",
    ]
    seen: set[str] = set()
    for job in jobs.values():
        assert set(job.parents) <= seen, f"{job.name} comes before {set(job.parents) - seen}"
        seen.add(job.name)
    assert set(jobs["iteration-1/weigh"].parents) == {
        *("iteration-0/problems-train", "iteration-1/sample-posterior"),
        *("iteration-1/score", "iteration-1/answer"),
    }


def test_kinds_and_shapes_follow_the_stage() -> None:
    jobs = jobs_of(*SERVED)
    train, sample, weigh = (
        jobs[f"iteration-1/{name}"] for name in ("train", "sample-posterior", "weigh")
    )
    assert (train.kind, train.shape.nodes, train.shape.gpus, train.shape.processes) == (
        *("ranks", 2, 8, 8),
    )
    assert (sample.kind, sample.shape.nodes) == ("served", 3)
    assert sample.model == Path("runs/toy/iteration-1/export-posterior/model").absolute()
    assert (weigh.kind, weigh.shape.nodes, weigh.shape.gpus) == ("cpu", 1, 0)


def test_the_embedded_engine_samples_on_ranks() -> None:
    assert jobs_of()["iteration-1/answer"].kind == "ranks"


def test_servers_that_run_elsewhere_need_a_client_alone() -> None:
    job = jobs_of("engine.kind=vllm", "engine.servers.urls=['http://host:8000']")
    assert job["iteration-1/answer"].kind == "cpu"
    assert job["iteration-1/answer"].shape.gpus == 0


def test_one_stage_may_have_a_shape_of_its_own() -> None:
    jobs = jobs_of(
        *SERVED,
        "cluster.stages={posterior: {nodes: 1, time: '2:00:00'}, sample: {flags: [--nice]}, "
        "sample-posterior: {flags: [--comment=long]}}",
    )
    posterior, train = jobs["iteration-1/posterior"], jobs["iteration-1/train"]
    assert (posterior.shape.nodes, posterior.shape.time, posterior.shape.gpus) == (1, "2:00:00", 8)
    assert (train.shape.nodes, train.shape.time) == (2, "24:00:00")
    assert jobs["iteration-1/sample-posterior"].shape.flags == ("--nice", "--comment=long")


def test_a_shape_for_no_stage_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"cluster\.stages\.posteriro .* posterior"):
        jobs_of("cluster.stages={posteriro: {nodes: 1}}")


def test_more_servers_than_gpus_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"4 servers of 4 × 1 GPUs on each node, 16 in all"):
        jobs_of("engine.kind=vllm", "engine.servers.launch={replicas: 4, gpus: 4}")


def test_benchmarks_follow_the_last_policy() -> None:
    job = jobs_of("cluster.benchmarks=[aime24]", "run.iterations=2")["benchmarks"]
    assert job.parents == ("iteration-2/export-policy",)


def test_a_part_of_the_chain_is_what_lies_between() -> None:
    jobs = tuple(jobs_of().values())
    names = [job.name for job in select(jobs, "weigh", "train")]
    assert names == ["iteration-1/weigh", "iteration-1/train"]
    until = {job.name for job in select(jobs, None, "iteration-0/export-policy")}
    assert until == {
        *("iteration-0/problems-train", "iteration-0/base"),
        *("iteration-0/sft", "iteration-0/export-policy"),
    }
    assert [job.stage for job in select(jobs, "train", None)] == ["train", "export", "evaluate"]
    assert select(jobs, None, None) == jobs


def test_a_part_of_the_chain_that_is_none_is_refused() -> None:
    jobs = tuple(jobs_of().values())
    with pytest.raises(SettingsError, match=r"--from trian is no stage .* train"):
        select(jobs, "trian", None)
    with pytest.raises(SettingsError, match="nothing of this run lies between"):
        select(jobs, "train", "sft")


def test_runs_in_two_folders_have_jobs_of_two_names(tmp_path: Path) -> None:
    assert slurm_prefix(tmp_path / "a") != slurm_prefix(tmp_path / "b")
    assert slurm_prefix(Path("runs/toy")) == slurm_prefix(Path("runs/toy").absolute())
