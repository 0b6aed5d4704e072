"""Trainings over two processes leave the log-probs of the model that is exported of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_vr.algorithm.context import Context
from megatron_vr.algorithm.megatron import open_megatron
from megatron_vr.algorithm.plan import Node, make_plan
from megatron_vr.algorithm.progress import Talk
from megatron_vr.algorithm.runner import run_nodes
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.models.spec import shares_prompts
from megatron_vr.parallel.interrupt import Interrupt
from megatron_vr.parallel.world import World
from megatron_vr.rollout.probe import PROBE, gap, read_probe
from megatron_vr.traces.store import DONE
from tests.algorithm.tiny_run import SMALL, TOY
from tests.parallel.launch import dissolve, run_ranks

OWN = [
    "model.random={hidden_size: 32, layers: 4, heads: 2, kv_heads: 2, head_dim: 32, "
    "ffn_hidden_size: 64}",
    "parallel.processes=2",
    "policy.steps=6",
    "policy.log_every=1",
    "policy.optimizer.final_fraction=1",
]
FILES = (PROBE, DONE)
# The last one loses its probe in the end.
LAYOUTS = {
    "tp2": ["parallel.tensor=2", "parallel.sequence=true"],
    "pp2": ["parallel.pipeline=2"],
    "pp2 vpp2": ["parallel.pipeline=2", "parallel.virtual_pipeline=2"],
    "cp2": ["parallel.context=2"],
    "dp2 overlap": ["parallel.overlap=true"],
    "dp2 overlap bf16": ["parallel.overlap=true", "model.dtype=bfloat16"],
}


def settings_of(folder: Path, name: str) -> Settings:
    return load_settings(TOY, [f"run.folder={folder / name}", *SMALL, *OWN, *LAYOUTS[name]])


def nodes_of(settings: Settings, *labels: str) -> list[Node]:
    """The first nodes of the plan with these labels; the problems are given, and never change."""
    nodes = make_plan(settings, {}).nodes
    return [next(node for node in nodes if node.label == label) for label in labels]


def export_all(rank: int, folder: str) -> dict[str, Any]:
    """Train and export in every layout, and again with something missing."""
    context = Context(World(rank, 2), Talk(speaks=False), Interrupt())
    found: dict[str, Any] = {}
    for name in LAYOUTS:
        settings = settings_of(Path(folder), name)
        nodes = nodes_of(settings, "base", "sft", "export-policy")
        sft, export = nodes[1:]
        run_nodes(nodes, context)
        found[name] = {"first": read_probe(export.path)}
        # As a kill leaves it between the last checkpoint and the probe.
        remove(context.world, *(node.path / file for node in (sft, export) for file in FILES))
        run_nodes(nodes, context)
        found[name] |= {"again": read_probe(export.path), "score": own_gap(settings, export)}
        megatron = open_megatron(settings, context.world)
        found[name]["writes"] = megatron.data_rank, megatron.writes
        dissolve()
    # As a version left it that made no probes.
    remove(context.world, sft.path / PROBE, *(export.path / file for file in FILES))
    run_nodes(nodes, context)
    found["without"] = read_probe(export.path), export.folder.done
    return found


def remove(world: World, *files: Path) -> None:
    """Delete `files` while all processes wait."""
    world.barrier()
    if world.is_main:
        for file in files:
            file.unlink()
    world.barrier()


def own_gap(settings: Settings, export: Node) -> float:
    """How far the score stage of the exported model is from its probe."""
    from megatron_vr.training.scoring import Sequenced, score

    megatron = open_megatron(settings, World(0, 2))
    probe = read_probe(export.path)
    assert probe is not None
    scored = score(
        megatron.load(export.path / "model"),
        [Sequenced(ids, ((1, len(ids)),)) for ids in probe.sequences],
        settings.scoring.micro_batch_tokens,
        share_prompts=shares_prompts(settings.model.spec, megatron.layout),
    )
    return gap(probe, [found.log_probs for found in scored]).largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("probes")


@pytest.fixture(scope="module")
def measured(folder: Path) -> list[dict[str, Any]]:
    """What each rank found; the problems are written here, as a command does."""
    alone = Context(World(0, 1), Talk(speaks=False), Interrupt())
    for name in LAYOUTS:
        run_nodes(nodes_of(settings_of(folder, name), "problems-train"), alone)
    return run_ranks(export_all, 2, str(folder))


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", [name for name in LAYOUTS if "bf16" not in name])
def test_the_probe_is_the_exported_hugging_face_models(name: str, folder: Path) -> None:
    from tests.algorithm.probes import gaps_of_export

    gaps = gaps_of_export(folder / name / "iteration-0" / "export-policy")
    assert gaps.tokens > 20
    assert gaps.largest < 1e-4


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_probe_is_what_the_trainer_scores_the_export_with(name: str, measured: Any) -> None:
    assert [rank[name]["score"] for rank in measured] == [0, 0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_training_that_lost_its_probe_after_its_last_step_makes_the_same(
    name: str, measured: Any, folder: Path
) -> None:
    for rank in measured:
        assert rank[name]["first"] is not None
        assert rank[name]["again"] == rank[name]["first"]
    metrics = folder / name / "iteration-0" / "sft" / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6], "nothing is trained again"


@pytest.mark.parametrize("name", LAYOUTS)
def test_one_rank_of_a_replica_writes_scores(name: str, measured: Any) -> None:
    places = [rank[name]["writes"] for rank in measured]
    writing = [replica for replica, writes in places if writes]
    assert writing == sorted({replica for replica, _ in places})


def test_an_export_of_a_training_without_a_probe_has_none(measured: Any) -> None:
    assert [rank["without"] for rank in measured] == [(None, True)] * 2
