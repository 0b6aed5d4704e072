"""`megatron-vr plan` end to end: tables, verdicts, exit codes, measured figures, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.plan import Plan, make_plan
from megatron_vr.cli_plan import plan
from megatron_vr.config.load import load_settings
from megatron_vr.traces.tables import SCORES

ROOT = Path(__file__).resolve().parents[3]
TOY = ROOT / "examples" / "toy.yaml"

BIG = """
run: {folder: FOLDER}
model: {path: Qwen/Qwen2.5-32B-Instruct, spec: te, dtype: bfloat16, recompute: full}
problems:
  train: [{kind: dataset, name: bespokelabs/Bespoke-Stratos-17k, layout: stratos}]
  test: [{kind: benchmark, name: math500}]
parallel: {tensor: 8, pipeline: 2, sequence: true, overlap: true}
policy: &training {epochs: 3, batch_size: 64, micro_batch_tokens: 32768}
posterior: {train: *training}
train: *training
engine: {kind: vllm, servers: {launch: {gpus: 4, replicas: 2}}}
cluster:
  train: {nodes: 2}
  score: {nodes: 2}
  sample: {nodes: 2}
  benchmarks: [aime24, math500]
"""


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a 32B run; nothing of it is in the hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    file = tmp_path / "big.yaml"
    file.write_text(BIG.replace("FOLDER", str(tmp_path / "run")))
    return file


def called(*arguments: object) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(plan)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def planned(*arguments: object, code: int = 0) -> dict[str, Any]:
    found = called(*arguments, "--json")
    assert found.exit_code == code, found.output
    content: dict[str, Any] = json.loads(found.stdout)
    return content


def stages(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in report["stages"]}


def test_the_toy_run_fits_and_every_job_has_its_hours(tmp_path: Path) -> None:
    report = planned(TOY, f"run.folder={tmp_path}", "comparisons={}")
    assert report["fits"] is True
    assert report["questions"] == {"train": 3000, "references": 1000, "test": 500}
    assert {fit["name"] for fit in report["memory"]} == {"sft", "posterior", "train", "score"}
    found = stages(report)
    assert found["iteration-0/sft"]["basis"].startswith("160 steps")
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert report["hours"] == pytest.approx(sum(s["seconds"] for s in found.values()) / 3600)


def test_nothing_is_written(tmp_path: Path) -> None:
    planned(TOY, f"run.folder={tmp_path / 'run'}")
    assert list(tmp_path.iterdir()) == []


def test_a_32b_run_is_planned_without_its_weights(big: Path) -> None:
    report = planned(big)
    assert report["parameters"] == pytest.approx(32.76e9, rel=1e-3)
    found = stages(report)
    # 3 epochs of 16,710 references in batches of 64.
    assert found["iteration-0/sft"]["basis"].startswith("784 steps")
    assert found["iteration-0/sft"]["gpus"] * found["iteration-0/sft"]["nodes"] == 16
    assert found["benchmarks"]["basis"].startswith("530 questions")
    step = found["iteration-1/train"]["step"]
    assert 0.15 < step["mfu"] < 0.6
    # Weights, main weights and moments: 14 bytes of each parameter; the last checkpoint and one
    # in writing of three trainings.
    assert report["disk_gb"]["checkpoints"] == pytest.approx(3 * 2 * 14 * 32.76, rel=1e-3)


def test_checkpoints_that_are_kept_fill_the_disk(big: Path) -> None:
    """784 steps saved every 100th: seven to keep, the last, and one in writing, in place of two."""
    usual = planned(big)["disk_gb"]["checkpoints"]
    kept = planned(big, "policy.save_every=100", "policy.keep_every=100")["disk_gb"]["checkpoints"]
    assert kept - usual == pytest.approx(7 * 14 * 32.76, rel=1e-3)


@pytest.mark.parametrize(
    "example", sorted(ROOT.glob("examples/qwen*.yaml")), ids=lambda it: it.stem
)
def test_every_example_fits_the_gpus_that_it_asks_for(example: Path, tmp_path: Path) -> None:
    assert planned(example, f"run.folder={tmp_path}")["fits"] is True


def test_the_tables_are_for_people(big: Path) -> None:
    found = called(big, "--search")
    assert found.exit_code == 0, found.output
    for words in (
        "memory of a GPU",
        "fits, ",
        "hours",
        "assumed (--assume key=value)",
        "# the fast",
    ):
        assert words in found.stdout


def test_what_does_not_fit_is_told_with_layouts_that_do(big: Path) -> None:
    found = called(big, "parallel.tensor=2", "parallel.pipeline=1")
    assert found.exit_code == 1
    assert "NOT AS IT IS: train: does not fit" in found.stdout
    assert "parallel: {tensor: " in found.stdout


def test_a_snippet_pasted_into_the_settings_fits(big: Path, tmp_path: Path) -> None:
    report = planned(big, "--search")
    best = next(one for one in report["layouts"] if not one["fp8"])
    shown = called(big, "--search").stdout
    pasted = yaml.safe_load(shown[shown.index("parallel: {") :].split("\n\n")[0])
    content = yaml.safe_load(big.read_text())
    content["parallel"] |= pasted["parallel"]
    content["model"] |= pasted["model"]
    file = tmp_path / "pasted.yaml"
    file.write_text(yaml.safe_dump(content))
    again = planned(file)
    train = stages(again)["iteration-1/train"]["step"]
    assert train["seconds"] == pytest.approx(best["step_seconds"])
    memory = {fit["name"]: fit["total"] for fit in again["memory"]}
    assert memory["train"] == best["bytes"]


def table_of(shown: str, title: str) -> list[str]:
    """The rows of a table of layouts: what stands between two rules and empty lines."""
    lines = iter(shown.splitlines())
    assert any(line.strip().startswith(title) for line in lines), shown
    rows: list[str] = []
    for line in lines:
        if not line.strip():
            if rows:
                break
        elif line.split()[0].isdecimal():
            rows.append(line)
    return rows


def test_layouts_without_fp8_are_shown_first_and_those_with_it_beside_them(big: Path) -> None:
    shown = called(big, "--search").stdout
    plain = table_of(shown, "layouts of `train` that fit without FP8")
    fp8 = table_of(shown, "layouts of `train` that fit with FP8")
    assert (len(plain), len(fp8)) == (10, 5)
    assert shown.index("# the fastest without FP8") < shown.index("# the fastest with FP8")
    snippets = [part.split("\n\n")[0] for part in shown.split("# the fastest ")[1:]]
    assert [yaml.safe_load("#" + part)["model"]["fp8"] for part in snippets] == [None, "tensorwise"]


@pytest.mark.parametrize("words", [["--device", "a100"], ["model.spec=plain"]])
def test_no_fp8_is_shown_where_device_or_settings_have_none(big: Path, words: list[str]) -> None:
    shown = called(big, "--search", *words).stdout
    assert table_of(shown, "layouts of `train` that fit without FP8")
    assert "with FP8" not in shown


def test_a_node_needs_the_memory_that_a_save_takes(big: Path) -> None:
    """Main weights and moments, 12 bytes, of what the ranks of a node hold: at tensor 8, pipeline
    2, half of 32.8 · 10⁹ parameters, and more while they are gathered."""
    (needed,) = {
        fit["host_bytes_per_node"] for fit in planned(big)["memory"] if fit["name"] == "train"
    }
    assert needed > 12 * 32.76e9 / 2
    gib = needed // 2**30
    for memory in ("0", f"{gib + 1}G", f"{(gib + 1) * 1024}"):
        assert planned(big, f"cluster.train.memory='{memory}'")["fits"] is True
    report = planned(big, f"cluster.train.memory={gib - 1}G", code=1)
    told = [fault for fault in report["faults"] if "a save takes" in fault]
    assert [fault.split(":")[0] for fault in told] == ["sft", "posterior", "train"]
    assert f"{gib - 1}G" in told[0]


def test_jobs_that_ask_for_no_memory_are_told_of(big: Path) -> None:
    unset = "cluster.train.memory=null"
    assert "sft, posterior, train: no `memory` is asked for" in called(big, unset).stdout
    assert "no `memory`" not in called(big, "cluster.train.memory='0'").stdout
    assert "no `memory`" not in called(big, unset, "cluster.train.flags=[--mem-per-gpu=90G]").stdout
    one = called(big, unset, "cluster.stages={train: {memory: '0'}}").stdout
    assert "sft, posterior: no `memory` is asked for" in one


def test_a_layout_that_is_none_on_these_nodes_is_refused_or_replaced(big: Path) -> None:
    refused = called(big, "--nodes", 1)
    assert refused.exit_code == 2
    assert "parallel.processes=8 is not a multiple" in refused.stderr
    assert "`plan --search` finds layouts" in refused.stderr
    report = planned(big, "--nodes", 1, "--search", code=1)
    assert report["layouts"]
    assert report["stages"] == []


def test_more_nodes_train_faster(big: Path) -> None:
    two, four = (stages(planned(big, "--nodes", nodes)) for nodes in (2, 4))
    name = "iteration-1/train"
    assert four[name]["seconds"] < two[name]["seconds"]
    assert four[name]["nodes"] == 4


def test_measured_speeds_take_the_place_of_predictions(big: Path, tmp_path: Path) -> None:
    usual = stages(planned(big))["iteration-1/train"]
    file = tmp_path / "measured.yaml"
    half = usual["step"]["tflops_per_gpu"] / 2
    file.write_text(f"train_tflops_per_gpu: {half}\nsample_tokens_per_second_per_gpu: 1000\n")
    slower = stages(planned(big, "--measured", file))
    assert "(measured)" in slower["iteration-1/train"]["basis"]
    ratio = slower["iteration-1/train"]["seconds"] / usual["seconds"]
    assert ratio == pytest.approx(2, rel=0.02)
    # 133,680 traces of 5,500 tokens on 16 GPUs, and the start.
    expected = 133_680 * 5_500 / 16 / 1000 + 240
    assert slower["iteration-1/sample-posterior"]["seconds"] == pytest.approx(expected)


def test_longer_traces_take_longer(big: Path) -> None:
    short, long = (
        stages(planned(big, "--assume", f"trace_tokens={tokens}")) for tokens in (2000, 8000)
    )
    for name in ("iteration-1/sample-posterior", "iteration-1/score", "iteration-1/train"):
        assert long[name]["seconds"] > 2 * short[name]["seconds"]


def test_a_short_limit_restarts_a_job_and_too_short_a_one_fails_it(big: Path) -> None:
    usual = stages(planned(big))["iteration-1/train"]
    assert usual["restarts"] == 1
    report = planned(big, "cluster.train.time='4:00:00'", "cluster.restarts=3", code=1)
    assert any("iteration-1/train: needs" in fault for fault in report["faults"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "h10"], "--device h10 is unknown; did you mean h100"),
        (["--assume", "trace_token=3"], "did you mean `trace_tokens`?"),
        (["--device", "a100", "model.fp8=tensorwise"], "computes no FP8"),
        (["model.path=some/model"], "give a folder with its config.json"),
        (["cluster.train.gpus=0"], "asks for no GPUs"),
        (["cluster.train.memory=much"], "'much', which Slurm does not read"),
        (["problems.train=[{kind: dataset, name: a/b}]"], "--assume train_questions=N"),
    ],
)
def test_mistakes_end_with_one_message(big: Path, arguments: list[str], words: str) -> None:
    found = called(big, *arguments)
    assert found.exit_code in (1, 2)
    assert words in found.stderr
    assert all(line.startswith("megatron-vr: ") for line in found.stderr.splitlines())


def test_servers_that_cannot_hold_a_sequence_are_told(big: Path) -> None:
    report = planned(big, "engine.servers.launch={gpus: 1, replicas: 8}", code=1)
    assert any("raise engine.servers.launch.gpus" in fault for fault in report["faults"])


def finish(run: Plan, label: str, summary: dict[str, Any], table: pa.Table | None = None) -> None:
    node = next(node for node in run.nodes if node.label == label)
    node.folder.open()
    if table is not None:
        node.folder.write_part(0, table)
    if label == "sft":
        lines = [json.dumps({"step": step, "tflops": 100.0 + step}) for step in range(1, 31)]
        (node.path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    node.folder.finish(0 if table is None else 1, summary)


def test_finished_stages_take_the_place_of_what_is_assumed(big: Path) -> None:
    settings = load_settings(big)
    run = make_plan(settings, digests(settings))
    finish(run, "sft", {"seconds": 5000.0})
    lengths = [1000, 3000]
    columns = {field.name: [None, None] for field in SCORES} | {"trace_length": lengths}
    finish(run, "score", {"seconds": 700.0}, pa.table(columns, SCORES))
    report = planned(big)
    found = stages(report)
    assert found["iteration-0/sft"]["done"] is True
    assert found["iteration-0/sft"]["seconds"] == 5000
    assert report["assumptions"]["trace_tokens"] == 2000
    assert report["assumptions"]["spread"] == 0.5
    # The median of the last twenty steps: 100 + 20.5.
    assert report["assumptions"]["train_tflops_per_gpu"] == 120.5
    assert "(measured)" in found["iteration-1/train"]["basis"]
    assert len(report["notes"]) == 2
    left = sum(stage["seconds"] for stage in report["stages"] if not stage["done"])
    assert report["hours"] == pytest.approx(left / 3600)
    stated = planned(big, "--assume", "trace_tokens=4000")
    assert stated["assumptions"]["trace_tokens"] == 4000
