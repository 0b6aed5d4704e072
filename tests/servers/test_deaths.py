"""kill -9 and SIGSTOP, of servers and of the client, in mid-run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from megatron_vr.config.engine_settings import EngineSettings
from megatron_vr.rollout.journal import read_journal
from megatron_vr.rollout.servers.engine import ServedEngine
from megatron_vr.rollout.servers.opening import FleetPlan
from megatron_vr.rollout.servers.weights import Wanted
from tests.servers.engines import QUICK
from tests.servers.environment import Kind, python_of, why_missing
from tests.servers.models import byte_model
from tests.servers.proxy import FaultyProxy, slow
from tests.servers.running import RunningServer, free_port
from tests.servers.sampled import COUNT, Numbered, sample_into

FLAGS: dict[Kind, list[str]] = {
    "vllm": [],
    "sglang": ["--max-total-tokens", "16384", "--max-running-requests", "32"],
}


def _two_servers(kind: Kind, model: Path, logs: Path, said: list[str]) -> ServedEngine:
    python = python_of(kind)
    if python is None:
        pytest.skip(why_missing(kind))
    port = free_port()
    launch = {"program": python, "replicas": 2, "gpus": 0, "dtype": "float32", "port": port}
    servers = QUICK | {
        "launch": launch | {"context_length": 1024, "flags": FLAGS[kind]},
        "concurrency": 16,
        "ready_seconds": 240.0,
        "stall_seconds": 10.0,
    }
    settings = EngineSettings.model_validate({"kind": kind, "servers": servers})
    return ServedEngine(FleetPlan(settings, Wanted.of(model), logs), said.append)


def _signal_all(pid: int, signum: signal.Signals) -> None:
    """To a server and every process of it."""
    server = psutil.Process(pid)
    for process in [server, *server.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_of_two_servers_one_is_killed_and_one_stopped_and_every_trace_is_there_once(
    kind: Kind, tmp_path: Path
) -> None:
    said: list[str] = []
    done = 0
    with _two_servers(kind, byte_model(tmp_path / "model"), tmp_path / "logs", said) as engine:
        while len(engine.fleet.ready) < 2:
            time.sleep(0.1)
        first, second = (member.process for member in engine.fleet.members.values())

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            if done == 100:
                _signal_all(first.pid, signal.SIGKILL)
            if done == 200:
                _signal_all(second.pid, signal.SIGSTOP)

        sampled = Numbered(total=600, part_size=150, max_new_tokens=100)
        table = sample_into(tmp_path / "traces", sampled, engine, advance)
    ids = table.column("id").to_pylist()
    assert Counter(ids) == Counter({f"trace-{item}": 1 for item in range(600)})
    text = "\n".join(said)
    assert "out of service" in text and "starting it again" in text, text
    assert "it is killed" in text, f"the stopped server was not ended:\n{text}"


def test_what_a_killed_client_kept_is_never_asked_for_again(
    vllm_server: RunningServer, tmp_path: Path
) -> None:
    folder, server = tmp_path / "traces", vllm_server
    with FaultyProxy(server.url, lambda number, body: slow(0.1)) as proxy:
        command = [sys.executable, "-m", "tests.servers.sampled", str(folder), server.kind]
        command += [proxy.url, str(server.model)]
        kept_at: list[tuple[set[int], int]] = []  # each kill: what was kept, requests until then
        for wanted in (40, 130):
            client = subprocess.Popen(command, cwd=Path(__file__).parents[2])
            _wait_for_traces(folder, wanted, client)
            os.kill(client.pid, signal.SIGKILL)
            client.wait()
            kept_at.append((_kept(folder), len(proxy.requests)))
        subprocess.run(command, check=True, timeout=600, cwd=Path(__file__).parents[2])
        asked = [_item(seen.body) for seen in proxy.requests]
    for kept, requests in kept_at:
        again = kept & set(asked[requests:])
        assert not again, f"{len(again)} of {len(kept)} kept traces were asked for again: {again}"
    assert set(asked) - {None} == set(range(COUNT))
    assert not list(folder.glob("*.journal"))


def _item(body: Any) -> int | None:
    """The item of `Numbered` that a request is for; None for a question to the server, or where
    the client was killed before it had sent the whole request."""
    prompt = body["prompt"] if body else []
    ours = len(prompt) == 4 and prompt[:2] == [5, 6]
    return prompt[2] - 7 + 200 * (prompt[3] - 7) if ours else None


def _kept(folder: Path) -> set[int]:
    """The items whose traces are on the disk, in parts or journals."""
    ids: set[str] = set()
    for journal in folder.glob("*.journal"):
        with suppress(FileNotFoundError):  # it has become a part
            ids |= read_journal(journal).keys()
    for part in folder.glob("*.parquet"):
        ids |= set(pq.read_table(part)["id"].to_pylist())
    return {int(name.removeprefix("trace-")) for name in ids}


def _wait_for_traces(folder: Path, count: int, client: subprocess.Popen[bytes]) -> None:
    last = time.monotonic() + 120
    while time.monotonic() < last:
        assert client.poll() is None, "the client ended by itself"
        if len(_kept(folder)) >= count:
            return
        time.sleep(0.02)
    pytest.fail(f"not {count} traces after 120 seconds")
