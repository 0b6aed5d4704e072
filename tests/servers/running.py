"""Start real vLLM and SGLang servers that cannot outlive the test run."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.environment import Kind, python_of, why_missing
from tests.servers.models import CONTEXT

MODEL_NAME = "tiny"
SECONDS_TO_START = 240
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
ENVIRONMENT: dict[Kind, dict[str, str]] = {
    "vllm": {
        "VLLM_SERVER_DEV_MODE": "1",  # for /collective_rpc and /reset_prefix_cache
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    },
    "sglang": {"SGLANG_USE_CPU_ENGINE": "1", "SGLANG_RETURN_ORIGINAL_LOGPROB": "1"},
}


class ServerFailed(RuntimeError):
    """A server that did not start; the message has the end of its log."""


@dataclass(frozen=True)
class RunningServer:
    """A server that has answered a generation. `pid` leads a process group with all its parts."""

    kind: Kind
    url: str
    model: Path
    log: Path
    pid: int


def launch(
    kind: Kind, model: Path, log: Path, owners: Sequence[int], **options: Any
) -> tuple[RunningServer, subprocess.Popen[bytes]]:
    """A server and its supervisor, which ends it when one of the processes `owners` ends.

    Each option is one of the server's own and goes before what is set here: `max_model_len=512`,
    `enable_metrics=True`; False leaves out what is set here. `environment` adds to its variables.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | ENVIRONMENT[kind]
    environment |= options.pop("environment", {})
    # Without stored bytecode each part of a server compiles its thousands of modules at each start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    port = free_port()
    supervisor = supervise(_command(kind, model, port, options), log, owners, environment)
    server = RunningServer(kind, f"http://127.0.0.1:{port}", model, log, pid_of(supervisor))
    try:
        _wait_until_ready(server, supervisor)
    except BaseException:
        end(supervisor)
        raise
    return server, supervisor


def supervise(
    command: list[str],
    log: Path,
    owners: Sequence[int],
    environment: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Run a command that ends, with all it started, at the latest when one of `owners` ends."""
    # Sent on as descriptors, so that no other process can have got an owner's number meanwhile.
    descriptors = [os.pidfd_open(owner) for owner in owners]
    supervisor = [sys.executable, str(Path(__file__).with_name("supervisor.py"))]
    supervisor.append(",".join(str(descriptor) for descriptor in descriptors))
    try:
        with log.open("ab") as output:
            return subprocess.Popen(
                supervisor + command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=descriptors,
                env=environment,
                start_new_session=True,  # a signal to the group of the tests must not reach it
            )
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def pid_of(supervisor: subprocess.Popen[bytes]) -> int:
    """The process id of the supervised command."""
    assert supervisor.stdout is not None
    with supervisor.stdout:
        return int(supervisor.stdout.readline())


def end(supervisor: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started, also what was stopped by SIGSTOP."""
    with suppress(ProcessLookupError):
        supervisor.send_signal(signal.SIGTERM)
    supervisor.wait(timeout=30)


def free_port() -> int:
    """A loopback port that nothing listens on, and that no process is given unasked."""
    # Not port 0: between now and its use a part of the server itself may be given the same number.
    first_unasked = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(first_unasked - 10_000, first_unasked)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def post(url: str, path: str, body: Any, seconds: float = 60) -> Any:
    """The JSON answer to a POST; a status other than 200 is an OSError with the text."""
    # Not urllib: it would obey the proxies of the environment.
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=seconds)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise OSError(f"{path}: {answer.status} {text[:2000]}")
        return json.loads(text)
    finally:
        connection.close()


def _command(kind: Kind, model: Path, port: int, options: dict[str, Any]) -> list[str]:
    python = python_of(kind)
    if python is None:
        raise ServerFailed(why_missing(kind))
    common = {"served_model_name": MODEL_NAME, "dtype": "float32", "host": "127.0.0.1"}
    common["port"] = str(port)
    if kind == "vllm":
        start = [str(python.with_name("vllm")), "serve", str(model)]
        # A request with a seed ends vLLM's engine on the CPU when its prefill is chunked.
        own = {"max_model_len": CONTEXT, "enforce_eager": True, "no_enable_chunked_prefill": True}
        # Engine and model in one process, as on one GPU. On a CPU vLLM does not take "uni" by name.
        own |= {"distributed_executor_backend": ONE_PROCESS}
    else:
        start = [str(python), "-m", "sglang.launch_server", "--model-path", str(model)]
        own = {"device": "cpu", "context_length": CONTEXT, "max_total_tokens": 65536}
        # Without the last it uses most of a core when it has nothing to do.
        own |= {"max_running_requests": 64, "sleep_on_idle": True}
    for name, value in (common | own | options).items():
        if value is not False:
            start += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return start


def _wait_until_ready(server: RunningServer, supervisor: subprocess.Popen[bytes]) -> None:
    """Until a generation is answered: a health check may say yes before, or with a dead engine."""
    path, body = "/generate", {"input_ids": [5], "sampling_params": {"max_new_tokens": 1}}
    if server.kind == "vllm":
        path, body = "/v1/completions", {"model": MODEL_NAME, "prompt": [5], "max_tokens": 1}
    last = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < last and supervisor.poll() is None:
        with suppress(OSError, http.client.HTTPException, ValueError):
            post(server.url, path, body, seconds=60)
            return
        time.sleep(0.25)
    why = "ended" if supervisor.poll() is not None else f"gave no answer in {SECONDS_TO_START} s"
    tail = server.log.read_text(errors="replace")[-6000:]
    raise ServerFailed(f"the {server.kind} server {why}; the end of {server.log}:\n{tail}")
