"""The proxy does each of its faults, before a small server that always answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.servers.proxy import (
    Fault,
    FaultyProxy,
    edit,
    garbage,
    half,
    never,
    not_the_answer,
    passed,
    reset,
    slow,
    status,
)
from tests.servers.running import post

ANSWER = {"output_ids": [7, 8], "meta_info": {"output_token_logprobs": [[-1.5, 7], [-0.5, 8]]}}
BODY = {"input_ids": [1, 2, 3]}


class Target(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append(self.path)  # type: ignore[attr-defined]
        text = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def target() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Target)
    server.heard = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def proxy(target: ThreadingHTTPServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(f"http://127.0.0.1:{target.server_port}") as proxy:
        yield proxy


def ask(proxy: FaultyProxy, path: str = "/generate", seconds: float = 60) -> Any:
    return post(proxy.url, path, BODY, seconds)


def test_passes_and_records(proxy: FaultyProxy, target: Any) -> None:
    before = time.monotonic()
    assert ask(proxy) == ask(proxy, "/v1/completions") == ask(proxy, "/reset?a=1") == ANSWER
    assert target.heard == ["/generate", "/v1/completions", "/reset?a=1"]
    assert [(seen.number, seen.body, seen.left) for seen in proxy.requests] == [
        (0, BODY, False),
        (1, BODY, False),
    ]
    assert before < proxy.requests[0].came < proxy.requests[1].came < time.monotonic()


@pytest.mark.parametrize(
    ("fault", "error", "says", "heard"),
    [
        (status(500, "out of memory"), OSError, "500 out of memory", 0),
        (status(429, Retry_After="1"), OSError, "429 no", 0),
        (status(400, '{"error": 1}'), OSError, '400 {"error": 1}', 0),
        (garbage, json.JSONDecodeError, "", 0),
        (half, http.client.IncompleteRead, "", 1),
        (reset, ConnectionResetError, "", 0),
    ],
)
def test_fault(
    proxy: FaultyProxy,
    target: Any,
    fault: Fault,
    error: type[Exception],
    says: str,
    heard: int,
) -> None:
    proxy.faults = iter([fault])
    with pytest.raises(error) as caught:
        ask(proxy)
    assert says in str(caught.value)
    assert len(target.heard) == heard
    assert ask(proxy) == ANSWER  # after the end of the faults
    assert proxy.left == []


def test_another_shape(proxy: FaultyProxy) -> None:
    proxy.faults = iter([not_the_answer])
    assert "output_ids" not in ask(proxy)


def test_lies(proxy: FaultyProxy) -> None:
    def no_log_probs(answer: Any) -> None:
        del answer["meta_info"]["output_token_logprobs"]

    proxy.faults = iter([edit(no_log_probs), edit(lambda answer: answer | {"output_ids": [9]})])
    assert ask(proxy) == ANSWER | {"meta_info": {}}
    assert ask(proxy) == ANSWER | {"output_ids": [9]}


def test_slow(proxy: FaultyProxy, target: Any) -> None:
    proxy.faults = iter([slow(0.3), slow(0.3, status(500))])
    before = time.monotonic()
    assert ask(proxy) == ANSWER
    with pytest.raises(OSError, match="500"):
        ask(proxy)
    assert time.monotonic() - before > 0.6
    assert len(target.heard) == 1


def test_never_until_the_client_leaves(proxy: FaultyProxy, target: Any) -> None:
    proxy.faults = lambda number, body: never if number == 1 else passed
    assert ask(proxy) == ANSWER
    with pytest.raises(TimeoutError):
        ask(proxy, seconds=0.2)
    proxy.wait_until(lambda: proxy.left == [1])
    assert ask(proxy) == ANSWER
    assert len(target.heard) == 2


@pytest.mark.parametrize("path", ["/health", "/generate"])
def test_everything_hangs(proxy: FaultyProxy, path: str) -> None:
    proxy.everything_hangs = True
    with pytest.raises(TimeoutError):
        ask(proxy, path, seconds=0.2)
    proxy.everything_hangs = False
    assert ask(proxy, path) == ANSWER


def test_many_at_once(proxy: FaultyProxy) -> None:
    """A callable sees each number once, also from many threads."""
    proxy.faults = lambda number, body: edit(lambda answer: {"number": number})
    numbers: list[int] = []

    def client(take: Callable[[int], None]) -> None:
        take(ask(proxy)["number"])

    threads = [threading.Thread(target=client, args=(numbers.append,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(20))


def test_a_target_that_is_gone() -> None:
    with FaultyProxy("http://127.0.0.1:9") as proxy, pytest.raises(OSError, match="502"):
        ask(proxy)
