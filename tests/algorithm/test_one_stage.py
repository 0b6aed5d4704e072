"""One stage by its folder's name: which node, on how many processes, with whose servers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.one_stage import (
    Asked,
    OneStage,
    find_node,
    hosts_of,
    prepare_stage,
    with_servers,
)
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.algorithm.run import execute, prepare, read_problems
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import DataError, SettingsError, StageError
from megatron_vr.parallel.hosts import Hosts
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from tests.algorithm.tiny_run import SMALL, TOY

PROBLEMS = "iteration-0/problems-train"
AUTO = "parallel.processes=auto"
SERVED = ("engine.kind=vllm", "engine.servers.launch={gpus: 1}")
TWO = Hosts(2, 0, "127.0.0.1:29500")


def settings_of(folder: Path, *overrides: str) -> Settings:
    return load_settings(TOY, [f"run.folder={folder}", *SMALL, *overrides])


def asked(name: str, folder: Path, *overrides: str, **options: object) -> OneStage:
    hosts = options.pop("hosts", Hosts())
    return prepare_stage(
        settings_of(folder, *overrides),
        Asked(name, hosts, **options),  # type: ignore[arg-type]
    )


def finished(folder: Path, *names: str) -> None:
    """Mark stages as done, without their work."""
    plan = make_plan(settings_of(folder), digests(settings_of(folder)))
    for name in names:
        found = find_node(plan, name).folder
        found.open()
        found.finish(0)


READY = (PROBLEMS, "iteration-0/problems-test", "iteration-0/base")


def test_every_node_is_found_by_its_folder(tmp_path: Path) -> None:
    plan = make_plan(settings_of(tmp_path), digests(settings_of(tmp_path)))
    for node in plan.nodes:
        name = str(node.path.relative_to(tmp_path))
        assert find_node(plan, name) is node
        assert find_node(plan, name + "/") is node
    assert find_node(plan, "comparisons/rft/iteration-1/weigh").arm == "rft"


def test_an_unknown_name_is_told_with_the_nearest_and_all(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as told:
        asked("iteration-1/trian", tmp_path)
    first, second = str(told.value).splitlines()
    assert first.startswith("'iteration-1/trian' is no stage of this run; did you mean")
    assert "iteration-1/train" in first
    assert "iteration-0/problems-train" in second and "comparisons/rft/iteration-1/train" in second


def test_inputs_that_are_not_done_are_named_as_this_command_names_them(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"needs iteration-0/base, .* stage CONFIG iteration-0/ba"):
        asked("iteration-0/sft", tmp_path)


@pytest.mark.parametrize("name", ["iteration-1/train", "comparisons/rft/iteration-1/weigh"])
def test_what_a_run_advises_for_inputs_that_are_not_done_is_a_stage(
    tmp_path: Path, name: str
) -> None:
    plan = make_plan(settings_of(tmp_path), digests(settings_of(tmp_path)))
    node = find_node(plan, name)
    with pytest.raises(StageError) as told:
        execute([node], World(0, 1), Interrupt())
    advised = re.search(r"`megatron-vr stage CONFIG (\S+)` first", str(told.value))
    assert advised is not None, told.value
    assert find_node(plan, advised[1]) in node.inputs.values()


def test_a_run_made_under_other_settings_is_refused(tmp_path: Path) -> None:
    finished(tmp_path, *READY)
    (tmp_path / PROBLEMS / "part-00000.parquet").touch()
    with pytest.raises(StageError, match="made under other settings"):
        asked(PROBLEMS, tmp_path, "problems.train=[{kind: toy, split: train, seed: 2, count: 9}]")


# --- processes


def test_ranks_are_counted_over_all_hosts(tmp_path: Path) -> None:
    finished(tmp_path, *READY)
    layout = ("parallel.tensor=2", "parallel.pipeline=2", "model.random.heads=2")
    one = asked("iteration-0/sft", tmp_path, AUTO, hosts=TWO, processes=2)
    assert (one.processes, one.prepared.processes) == (2, 4)
    with pytest.raises(SettingsError, match="does not divide the 2 processes"):
        asked("iteration-0/sft", tmp_path, AUTO, *layout, hosts=TWO, processes=1)


@pytest.mark.parametrize("name", ["iteration-0/sft", "iteration-0/evaluate"])
def test_several_hosts_need_a_number_of_processes(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--processes"):
        asked(name, tmp_path, AUTO, hosts=TWO)


def test_another_number_of_processes_than_the_settings_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"parallel\.processes is 3, but .* start 4"):
        asked("iteration-0/sft", tmp_path, "parallel.processes=3", hosts=TWO, processes=2)


def test_a_rank_counts_the_world_that_it_was_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(tmp_path, *READY)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert asked("iteration-0/sft", tmp_path, AUTO).prepared.processes == 4
    assert prepare(settings_of(tmp_path, AUTO)).processes == 4
    with pytest.raises(SettingsError, match=r"parallel\.processes is 2, but WORLD_SIZE is 4"):
        prepare(settings_of(tmp_path, "parallel.processes=2"))


@pytest.mark.parametrize("name", [PROBLEMS, "iteration-0/base", "iteration-1/weigh"])
def test_stages_of_one_process_take_no_more(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="the work of one process"):
        asked(name, tmp_path, AUTO, hosts=TWO, processes=1)
    with pytest.raises(SettingsError, match="the work of one process"):
        asked(name, tmp_path, AUTO, processes=2)


def test_a_stage_of_one_process_does_not_mind_a_layout_for_many(tmp_path: Path) -> None:
    many = ("parallel.processes=8", "parallel.tensor=2", "model.random.kv_heads=2")
    assert asked(PROBLEMS, tmp_path, *many, "parallel.pipeline=2").processes == 1


@pytest.mark.parametrize(("tasks", "nodes", "fits"), [(2, 2, True), (4, 2, False), (2, 1, False)])
def test_srun_starts_one_launcher_on_each_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int, nodes: int, fits: bool
) -> None:
    finished(tmp_path, *READY)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
    hosts = TWO if nodes == 2 else Hosts()
    if fits:
        asked("iteration-0/sft", tmp_path, AUTO, hosts=hosts, processes=1)
        return
    with pytest.raises(SettingsError, match=f"srun started {tasks} tasks"):
        asked("iteration-0/sft", tmp_path, AUTO, hosts=hosts, processes=1)


def test_options_that_belong_together_are_asked_for(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, "cluster.meet_seconds=7", "parallel.dead_after_seconds=9")
    with pytest.raises(SettingsError, match=r"--node-rank .* --meet"):
        hosts_of(settings, 2, 0, None)
    with pytest.raises(SettingsError, match="--nodes is 1"):
        hosts_of(settings, 1, 1, None)
    assert hosts_of(settings, 2, 1, "a:1") == Hosts(2, 1, "a:1", 7, 9)


# --- servers that run elsewhere


def test_servers_of_a_folder_leave_the_fingerprint_as_it_is(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, *SERVED, "engine.servers.launch.dtype=bfloat16")
    plan = make_plan(settings, digests(settings))
    node = find_node(plan, "iteration-0/evaluate")
    client = with_servers(node, tmp_path / "servers")
    servers = client.settings.engine.servers
    assert (servers.launch, servers.urls) == (None, ())
    assert servers.host_file == tmp_path / "servers"
    assert client.folder == node.folder and client.inputs == node.inputs
    assert servers.ready_seconds == node.settings.engine.servers.ready_seconds
    assert node.settings.engine.servers.launch is not None, "the plan's own is as it was"
    other = settings_of(tmp_path, *SERVED)
    again = find_node(make_plan(other, digests(other)), "iteration-0/evaluate")
    assert again.folder.fingerprint != client.folder.fingerprint, "the dtype counts"


@pytest.mark.parametrize("overrides", [SERVED, ()])
def test_only_a_stage_of_servers_takes_them(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    settings = settings_of(tmp_path, *overrides)
    plan = make_plan(settings, digests(settings))
    name = "iteration-0/sft" if overrides else "iteration-0/evaluate"
    with pytest.raises(SettingsError, match=r"--hosts is .* no rollout servers work on"):
        with_servers(find_node(plan, name), tmp_path)


# --- problems


def test_problems_are_read_one_by_one_and_compared_once_both_are_there(tmp_path: Path) -> None:
    same = "problems.test=[{kind: toy, split: train, seed: 1, count: 12}]"
    train, test = (
        asked(f"iteration-0/problems-{which}", tmp_path, same) for which in ("train", "test")
    )
    read_problems(train.prepared, Interrupt(), only=train.node)
    assert train.node.folder.done and not test.node.folder.done
    saved = yaml.safe_load((tmp_path / "settings.yaml").read_text())
    assert saved["run"]["folder"] == str(tmp_path)
    with pytest.raises(DataError, match=r"problems\.test shares 12 questions with problems\.train"):
        read_problems(test.prepared, Interrupt(), only=test.node)
