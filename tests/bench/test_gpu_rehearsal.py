"""Every part of the benchmark runs on a CPU, tiny, as the command that a person types."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tools.bench.on_gpu.parts import PARTS


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tools.bench.gpu", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("names", ["rate,head,step", "rival", "curves,vllm", "convert"])
def test_every_case_of_every_part_is_rehearsed(names: str, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    done = command("--rehearse", "--json", file, "--only", names, "--seconds", 270)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    assert found["complete"] and found["rehearsal"] and found["goals"] == []
    assert "nothing here was measured on a GPU" in found["what"]
    assert {"torch", "megatron-core", "transformers", "python"} <= set(found["versions"])
    assert set(found["parts"]) == set(names.split(","))
    for part in (part for part in PARTS if part.name in names.split(",")):
        cases = found["parts"][part.name]["cases"]
        assert list(cases) == list(part.cases)
        for case, entry in cases.items():
            if part.name == "vllm" and entry["status"] == "not run":
                assert entry["why"].endswith("is not installed here")
                continue
            assert entry["status"] == "done", (part.name, case, entry["why"])
            assert entry["rows"]
    for row in _rows(found, "losses"):
        assert all(math.isfinite(loss) for loss in row)
    if "curves" in names:
        losses = [entry["losses"] for entry in _entries(found, "curve")]
        # On a CPU all are in one precision, of the same weights and batches; other packs round.
        assert losses[0] == losses[1] == losses[2] == losses[3]
        assert losses[4] == pytest.approx(losses[0], rel=1e-2)
        assert (tmp_path / "out-curves.png").read_bytes().startswith(b"\x89PNG")
    assert command("--read", file).stdout.strip() == found["what"]


def _entries(found: dict[str, Any], name: str) -> list[dict[str, Any]]:
    cases = [case for part in found["parts"].values() for case in part["cases"].values()]
    return [case["rows"][name] for case in cases if name in case["rows"]]


def _rows(found: dict[str, Any], field: str) -> list[list[float]]:
    cases = [case for part in found["parts"].values() for case in part["cases"].values()]
    return [row[field] for case in cases for row in case["rows"].values() if field in row]


def test_wrong_words_are_one_line(tmp_path: Path) -> None:
    for words, said in (
        ((), "--json FILE is missing"),
        (("--json", tmp_path / "out.json", "--only", "heads"), "--only heads is no part"),
    ):
        done = command(*words)
        assert done.returncode == 1
        assert said in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
