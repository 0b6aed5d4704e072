"""`megatron-vr serve` with a real vLLM: it publishes servers, keeps them up and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_vr.rollout.servers.host_file import read_hosts
from tests.algorithm.tiny_run import ROOT, TOY, environment
from tests.servers.environment import python_of, why_missing
from tests.servers.models import CONTEXT, byte_model
from tests.servers.running import free_port, post

SECONDS = 240


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    last = time.monotonic() + SECONDS
    while time.monotonic() < last:
        if found := condition():
            return found
        time.sleep(0.2)
    pytest.fail(what)


class Serving:
    """The command, its process, and what it says."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = free_port()
        self.hosts, self.said = folder / "servers", folder / "said"
        self.result = folder / "result"
        launch = {"program": str(python_of("vllm")), "gpus": 0, "dtype": "float32"}
        launch |= {"port": self.port, "context_length": CONTEXT}
        launch |= {"environment": {"OMP_NUM_THREADS": "1"}}
        words = [f"engine.servers.launch={json.dumps(launch)}", "engine.kind=vllm"]
        words += [f"run.folder={folder}", "engine.servers.pulse_seconds=1", *options]
        kept = environment()
        kept.pop("PYTHONDONTWRITEBYTECODE", None)
        with self.said.open("w") as said, self.result.open("w") as result:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "megatron_vr", "serve", str(TOY), *words],
                stdout=result,
                stderr=said,
                env=kept,
                cwd=ROOT,
            )

    def says(self, text: str) -> bool:
        """Whether it has said so; it must still run."""
        said = self.said.read_text()
        assert text in said or self.process.poll() is None, said
        return text in said

    def parts(self) -> list[psutil.Process]:
        """All that it started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill_server(self) -> None:
        """`kill -9` for the server that answers."""
        for part in self.parts():
            with suppress(psutil.NoSuchProcess):
                if "start_vllm.py" in " ".join(part.cmdline()) and part.pid == os.getpgid(part.pid):
                    return part.kill()
        pytest.fail("no server runs")


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Serving]:
    if python_of("vllm") is None:
        pytest.skip(why_missing("vllm"))
    served = Serving(folder, *options)
    try:
        yield served
    finally:
        served.process.kill()
        served.process.wait()


def answer(url: str) -> list[int]:
    """Some tokens of a server."""
    body = {"model": "megatron-vr", "prompt": [5, 6], "max_tokens": 4, "return_token_ids": True}
    tokens: list[int] = post(url, "/v1/completions", body)["choices"][0]["token_ids"]
    return tokens


@pytest.mark.timeout(3 * SECONDS)
def test_a_service_from_its_start_to_its_end(tmp_path: Path) -> None:
    model, folder = byte_model(tmp_path / "model"), tmp_path / "run"
    folder.mkdir()
    with serving(folder, "--json", "--model", str(model)) as served:
        line = until(lambda: served.says("") and served.result.read_text(), "it tells no result")
        url = f"http://127.0.0.1:{served.port}"
        told = json.loads(line)
        assert told == {
            "urls": [url],
            "kind": "vllm",
            "model": str(model),
            "hosts": str(served.hosts),
        }
        assert line.count("\n") == 1
        assert served.says(f"{url} is ready")
        assert read_hosts(served.hosts) == (url,)
        assert len(answer(url)) == 4

        served.kill_server()
        until(lambda: served.says(f"{url} is out of service"), "nobody saw that it was killed")
        until(lambda: read_hosts(served.hosts) == (), "it stays published")
        until(lambda: served.says(f"{url} is ready again"), "it did not come back")
        assert served.says(f"{url}: starting it again, 1 of 3")
        until(lambda: read_hosts(served.hosts) == (url,), "it is not published again")
        assert len(answer(url)) == 4
        assert served.result.read_text() == line

        parts = served.parts()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=60) == 0, served.said.read_text()
        _, alive = psutil.wait_procs(parts, timeout=60)
        assert not alive
        assert not list(folder.rglob("*.urls"))
        with pytest.raises(ConnectionRefusedError):
            answer(url)


def test_ctrl_c_ends_it_before_anything_is_ready(tmp_path: Path) -> None:
    model, folder = byte_model(tmp_path / "model"), tmp_path / "run"
    folder.mkdir()
    with serving(folder, "--model", str(model)) as served:
        until(lambda: served.says("logs to") and len(served.parts()) >= 2, "nothing was started")
        parts = served.parts()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(timeout=60) == 0, served.said.read_text()
        _, alive = psutil.wait_procs(parts, timeout=60)
        assert not alive
        assert "Traceback" not in served.said.read_text()
        assert not served.result.read_text()
        assert not list(folder.rglob("*.urls"))
