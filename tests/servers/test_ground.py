"""The ground of the server tests: real servers answer as the model says and end in time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from tests.servers.models import byte_model, next_log_probs, reference_log_probs
from tests.servers.running import MODEL_NAME, RunningServer, post

PROMPT = [73, 101, 5, 250, 33]
LENGTH = 40
PLAIN = {"temperature": 1.0, "top_k": -1, "top_p": 1.0, "repetition_penalty": 1.0}


def generate(server: RunningServer, **sampling: Any) -> tuple[list[int], list[float]]:
    """Sampled token ids and their log-probs."""
    if server.kind == "vllm":
        body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": LENGTH, "logprobs": 0}
        body |= {"return_token_ids": True, "ignore_eos": True, **sampling}
        choice = post(server.url, "/v1/completions", body)["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]
    sampling = {"max_new_tokens": LENGTH, "ignore_eos": True, **sampling}
    body = {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
    answer = post(server.url, "/generate", body)
    rows = answer["meta_info"]["output_token_logprobs"]
    assert [row[1] for row in rows] == answer["output_ids"]
    return answer["output_ids"], [row[0] for row in rows]


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    return request.getfixturevalue(f"{request.param}_server")


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_of_a_real_server(server: RunningServer, temperature: float) -> None:
    ids, log_probs = generate(server, **PLAIN | {"temperature": temperature})
    assert len(ids) == LENGTH
    expected = reference_log_probs(server.model, PROMPT + ids)[len(PROMPT) - 1 :]
    sampled = torch.tensor(log_probs, dtype=torch.float64)
    torch.testing.assert_close(sampled, expected, atol=1e-4, rtol=0)


def lowest_rank(server: RunningServer, ids: list[int]) -> int:
    """The rank of the least probable token that was sampled."""
    log_probs = next_log_probs(server.model, PROMPT + ids)[len(PROMPT) - 1 : -1]
    chosen = log_probs.gather(1, torch.tensor(ids)[:, None])
    return int((log_probs > chosen).sum(dim=1).max()) + 1


def completion(server: RunningServer, **sampling: Any) -> list[int]:
    """Token ids of the API that both have."""
    body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": LENGTH, "ignore_eos": True}
    body |= {"return_token_ids": True, **sampling}
    return post(server.url, "/v1/completions", body)["choices"][0]["token_ids"]


def test_sampling_defaults_of_vllm(vllm_server: RunningServer) -> None:
    """The model's generation config changes a request that does not say all."""
    # The repetition penalty moves some tokens beyond the third.
    assert lowest_rank(vllm_server, completion(vllm_server)) < 15
    assert lowest_rank(vllm_server, completion(vllm_server, **PLAIN)) > 30


def test_sampling_defaults_of_sglang(sglang_server: RunningServer) -> None:
    """Only its chat takes them from the model."""
    assert lowest_rank(sglang_server, completion(sglang_server)) > 30
    assert lowest_rank(sglang_server, generate(sglang_server)[0]) > 30


def test_a_server_of_its_own_can_be_killed(tmp_path: Path, start_server: Any) -> None:
    server = start_server("sglang", byte_model(tmp_path / "model", seed=1), context_length=512)
    parts = psutil.Process(server.pid).children(recursive=True)
    assert {os.getpgid(part.pid) for part in parts} == {server.pid}
    os.killpg(server.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        post(server.url, "/generate", {"input_ids": PROMPT}, seconds=1)
    os.killpg(server.pid, signal.SIGCONT)
    assert post(server.url, "/generate", {"input_ids": PROMPT})["output_ids"]
    os.killpg(server.pid, signal.SIGKILL)
    psutil.wait_procs(parts, timeout=60)
    with pytest.raises(ConnectionRefusedError):
        post(server.url, "/generate", {"input_ids": PROMPT})


OWNER = """
import os, pathlib, sys, time
from tests.servers.running import pid_of, supervise
work = "sleep 300 & setsid bash -c 'setsid sleep 300 & kill -STOP $$' & wait"
supervisor = supervise(["bash", "-c", work], pathlib.Path(sys.argv[1]), [1, os.getpid()])
pid_of(supervisor)
print(supervisor.pid, flush=True)
time.sleep(300)
"""


def test_nothing_outlives_a_killed_owner(tmp_path: Path) -> None:
    """Nor what is stopped or in a session of its own."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    with owner, owner.stdout:
        supervisor = psutil.Process(int(owner.stdout.readline()))
        last = time.monotonic() + 20
        while len(parts := supervisor.children(recursive=True)) < 4 and time.monotonic() < last:
            time.sleep(0.1)
        assert len(parts) == 4
        owner.kill()
        # Not yet waited for: the killed owner is still in the table of processes.
        _, alive = psutil.wait_procs([supervisor, *parts], timeout=60)
    assert not alive
