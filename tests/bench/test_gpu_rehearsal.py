"""Every part of the benchmark runs on a CPU, tiny; the command is one that a person types."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.bench.every_part import EVERY
from tools.bench.gpu import check_device, main, measure
from tools.bench.on_gpu.parts import PARTS
from tools.bench.on_gpu.record import REHEARSAL
from tools.bench.on_gpu.shown import draw_curves


def test_every_case_of_every_part_is_rehearsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Threads that wait for each other take more time than shapes so small.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    file = tmp_path / "out.json"
    measure(file, (EVERY,), 400.0, True, Console(quiet=True))
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    assert found["complete"] and found["rehearsal"] and found["goals"] == []
    cases = found["parts"]["every"]["cases"]
    assert list(cases) == list(EVERY.cases)
    for case, entry in cases.items():
        if case.startswith("vllm") and entry["status"] == "not run":
            assert entry["why"].endswith("is not installed here")
            continue
        assert entry["status"] == "done", (case, entry["why"], entry.get("log"))
        assert entry["rows"]
    rows = [row for entry in cases.values() for row in entry["rows"].values()]
    assert all(math.isfinite(loss) for row in rows for loss in row.get("losses", []))
    losses = [entry["rows"]["curve"]["losses"] for case, entry in cases.items() if "curves" in case]
    # On a CPU all are in one precision, of the same weights and batches; other packs round.
    assert losses[0] == losses[1] == losses[2] == losses[3]
    assert losses[4] == pytest.approx(losses[0], rel=1e-2)


def test_the_command_measures_the_parts_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "out.json"
    words = ["--rehearse", "--json", str(file), "--only", "vllm,rate", "--seconds", "200"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.gpu", *words, "--markdown"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == REHEARSAL
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    assert found["what"] == REHEARSAL and found["complete"]
    assert found["command"] == " ".join(["python -m tools.bench.gpu", *words, "--markdown"])
    assert {"torch", "megatron-core", "transformers", "python"} <= set(found["versions"])
    for part in PARTS:
        assert (part.name in found["parts"]) == (part.name in ("rate", "vllm"))
    rate = found["parts"]["rate"]["cases"]
    assert {entry["status"] for entry in rate.values()} == {"done"}
    assert sorted(path.name for path in (tmp_path / "out-logs").iterdir()) == [
        "000-rate.log",
        "001-vllm.log",
    ]
    run_main(monkeypatch, "--read", file)
    assert capsys.readouterr().out.strip() == REHEARSAL


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, words)])
    main()


def test_the_losses_are_drawn_beside_the_file(tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    nothing: dict[str, Any] = {"rehearsal": False, "parts": {}}
    assert not draw_curves(nothing, picture) and not picture.exists()
    cases = {"bf16": {"rows": {"curve": {"losses": [2.0, 1.0, "nan"]}}}}
    assert draw_curves({"rehearsal": False, "parts": {"curves": {"cases": cases}}}, picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_wrong_words_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, said in (
        ((), "--json FILE is missing"),
        (("--json", tmp_path / "out.json", "--only", "heads"), "--only heads is no part"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_main(monkeypatch, *words)
        assert said in str(ended.value) and len(str(ended.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_card_older_than_hoppers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "L40S")
    with pytest.raises(Exception, match=r"L40S has compute capability 8\.9"):
        check_device()


def test_the_command_ends_when_its_time_is_over(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    hanging = (
        "import sys, time\n"
        "from tools.bench import gpu\n"
        "gpu.measure = lambda *args: time.sleep(60)\n"
        f"sys.argv = ['gpu', '--rehearse', '--seconds', '3', '--json', {str(file)!r}]\n"
        "gpu.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hanging], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 124
    assert "time is over" in done.stderr
