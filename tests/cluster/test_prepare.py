"""What `submit` reads itself, so that jobs need no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from megatron_vr.algorithm.benchmarking.command import _is_own
from megatron_vr.algorithm.digests import digests
from megatron_vr.algorithm.plan import make_plan
from megatron_vr.cluster.prepare import prepare_here
from megatron_vr.cluster.script import render
from megatron_vr.config.load import load_settings
from megatron_vr.config.settings import Settings
from megatron_vr.errors import DataError
from megatron_vr.problems.benchmarks.load import load_benchmark
from megatron_vr.problems.benchmarks.problems import benchmark_problems
from tests.cluster.golden import chain

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    {"nr": 1, "ask": "1 + 1", "right": "2", "about": {"level": "easy"}, "kind": "sum"},
    {"nr": 2, "ask": "2 · 3", "right": "6", "about": {"level": None}, "kind": "product"},
    {"nr": 3, "ask": "2 + 3", "right": "5", "about": {"level": "hard"}, "kind": "sum"},
]


@contextmanager
def network(folder: Path) -> Iterator[str]:
    """The address under which the files of `folder` are read; afterwards nobody answers there."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "downloads")


def benchmark_at(address: str, folder: Path, **changes: object) -> Path:
    told = {
        "title": "Far",
        "group": "other",
        "data": {"files": [f"{address}/rows.jsonl"]},
        "fields": {"id": "nr", "question": "ask", "answer": "right"},
        "filter": {"kind": "sum"},
        "prompt": "{{ question }} =",
        "grader": {"kind": "math"},
        "samples": 2,
        "metric": "mean@n",
        "licence": "none",
        "reference": "made up",
    }
    file = folder / "far.yaml"
    file.write_text(yaml.safe_dump(told | changes))
    return file


def written_rows(folder: Path, rows: list[dict[str, object]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings_of(folder: Path, benchmark: Path) -> Settings:
    own = [f"run.folder={folder}", "comparisons={}", f"cluster.benchmarks=[{benchmark}]"]
    return load_settings(ROOT / "examples/toy.yaml", own)


def prepare(settings: Settings) -> list[str]:
    said: list[str] = []
    plan = make_plan(settings, digests(settings))
    prepare_here(plan, settings, {"benchmarks"}, said.append)
    return said


def test_a_benchmark_is_read_without_the_network_that_submit_had(tmp_path: Path) -> None:
    with network(written_rows(tmp_path / "far", ROWS)) as address:
        file = benchmark_at(address, tmp_path)
        far = load_benchmark(str(file))
        there = benchmark_problems(far)
        said = prepare(settings_of(tmp_path / "run", file))
    assert [problem.question for problem in there] == ["1 + 1 =", "2 + 3 ="]
    kept = tmp_path / "run/slurm/benchmarks"
    assert benchmark_problems(far, data=kept / "far.parquet") == there
    assert said[-1] == "benchmark far: 2 questions"
    # Nobody answers any more, and what is kept is read again.
    assert prepare(settings_of(tmp_path / "run", file)) == ["benchmark far: 2 questions"]


def test_rows_are_read_anew_where_the_benchmark_says_otherwise(tmp_path: Path) -> None:
    kept = tmp_path / "run/slurm/benchmarks/far.parquet"
    with network(written_rows(tmp_path / "far", ROWS)) as address:
        file = benchmark_at(address, tmp_path)
        prepare(settings_of(tmp_path / "run", file))
        benchmark_at(address, tmp_path, filter={"kind": "product"})
        prepare(settings_of(tmp_path / "run", file))
    (problem,) = benchmark_problems(load_benchmark(str(file)), data=kept)
    assert problem.question == "2 · 3 ="


def test_a_file_of_this_host_is_checked_and_read_where_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"question": "1 + 1", "answer": "2"}) + "\n")
    assert prepare(settings_of(tmp_path / "run", mine))[-1] == "benchmark mine: 1 questions"
    assert not (tmp_path / "run/slurm/benchmarks/mine.parquet").exists()


def test_a_benchmark_that_cannot_be_read_is_told_before_the_base_is_fetched(
    tmp_path: Path,
) -> None:
    with network(written_rows(tmp_path / "far", ROWS)) as address:
        file = benchmark_at(address, tmp_path)
    with pytest.raises(DataError, match=r"benchmark far: .* cannot be loaded"):
        prepare(settings_of(tmp_path / "run", file))
    assert (tmp_path / "run/iteration-0/problems-train").is_dir()
    assert not (tmp_path / "run/iteration-0/base").exists()


def test_the_job_is_told_where_the_rows_are_only_if_submit_read_them() -> None:
    kept = f"'data={chain.FILES.folder}/benchmarks'"
    assert kept in chain.script("plain", "benchmarks")
    left_to_jobs = render(
        chain.JOBS["benchmarks"],
        chain.FILES,
        chain.settings_of("cluster.prepare=job"),
        chain.site_of("plain"),
        name="vr-1:benchmarks",
        folder=Path("/home/ada/work"),
    )
    assert "--iteration 1 &" in left_to_jobs
    assert "data=" not in left_to_jobs


def test_data_is_a_folder_of_the_evaluation_and_a_section_of_the_run() -> None:
    own = [word for word in ("data=/run/rows", "data={references: true}") if _is_own(word)]
    assert own == ["data=/run/rows"]
    assert not _is_own("data.references=true")
    assert _is_own("limit=3") and not _is_own("train.steps=3")


def test_the_environment_of_the_site_holds_for_submit(tmp_path: Path) -> None:
    """The hub's library takes its folder from HF_HOME when it is imported."""
    site = tmp_path / "site.yaml"
    site.write_text(yaml.safe_dump({"environment": {"HF_HOME": str(tmp_path / "hub")}}))
    program = (
        "import sys, typer; from megatron_vr.cli import app\n"
        "try: app(sys.argv[1:], standalone_mode=False)\n"
        "finally:\n"
        "    import huggingface_hub.constants as told; print(told.HF_HOME, file=sys.stderr)\n"
    )
    words = ["submit", str(ROOT / "examples/toy.yaml"), f"run.folder={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words, "--site", site, "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HOME": str(tmp_path / "of the shell"), "PATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == str(tmp_path / "hub")
