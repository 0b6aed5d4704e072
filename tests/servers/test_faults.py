"""Servers that answer 500, garbage, half a response, lies or nothing: nothing is lost or twice."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from typing import Any

import pytest
from aiohttp import web

from megatron_vr.errors import StageError
from megatron_vr.rollout.engine import Ask, Completion, Request, Sampling
from megatron_vr.rollout.servers.engine import ServedEngine
from megatron_vr.rollout.servers.faults import Refused
from tests.servers.engines import open_servers
from tests.servers.proxy import (
    Exchange,
    Fault,
    FaultyProxy,
    Seen,
    edit,
    garbage,
    half,
    held,
    never,
    not_the_answer,
    passed,
    reset,
    slow,
    status,
)
from tests.servers.running import RunningServer

SHORT = Sampling(temperature=1.0, max_new_tokens=16)


@pytest.fixture(scope="module", params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest) -> RunningServer:
    return request.getfixturevalue(f"{request.param}_server")


def _requests(count: int) -> list[Request]:
    return [Request(f"r{i}", (5, 6, 7 + i % 50), i) for i in range(count)]


def _drop_last_log_prob(answer: Any) -> Any:
    for choice in answer.get("choices", []):
        choice["logprobs"]["token_logprobs"].pop()
    if "meta_info" in answer:
        answer["meta_info"]["output_token_logprobs"].pop()
    return answer


def _other_prompt(answer: Any) -> Any:
    for choice in answer.get("choices", []):
        choice["prompt_token_ids"][0] += 1
    if "meta_info" in answer:
        answer["meta_info"]["prompt_tokens"] += 1
    return answer


def _unknown_token(answer: Any) -> Any:
    for choice in answer.get("choices", []):
        choice["token_ids"][-1] = 100_000
    if "meta_info" in answer:
        answer["output_ids"][-1] = answer["meta_info"]["output_token_logprobs"][-1][1] = 100_000
    return answer


FAULTS = {
    "500": status(500, "out of memory"),
    "503": status(503),
    "429": status(429),
    "garbage": garbage,
    "not the answer": not_the_answer,
    "half": half,
    "reset": reset,
    "a log-prob less": edit(_drop_last_log_prob),
    "another prompt": edit(_other_prompt),
    "an unknown token": edit(_unknown_token),
}


def _once_each(requests: list[Request], found: list[Completion]) -> None:
    assert [completion.id for completion in found] == [request.id for request in requests]


def _all_at_once(engine: ServedEngine, requests: list[Request]) -> Counter[str]:
    stream = engine.stream([[Ask(request, SHORT) for request in requests]])
    return Counter(completion.id for completion in stream)


@pytest.mark.parametrize("name", FAULTS)
def test_a_request_is_asked_again_after(server: RunningServer, name: str) -> None:
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model) as engine,
    ):
        before = len(proxy.requests)
        proxy.faults = iter([FAULTS[name]])
        _once_each(_requests(3), engine.generate(_requests(3), SHORT))
        assert len(proxy.requests) > before + 3, "the fault was not met"


def test_a_server_with_every_fault_now_and_then_gives_everything_once(
    server: RunningServer,
) -> None:
    dice = random.Random(1)

    def faults(number: int, body: Any) -> Fault:
        return dice.choice(list(FAULTS.values())) if dice.random() < 0.1 else passed

    with (
        FaultyProxy(server.url) as bad,
        FaultyProxy(server.url) as good,
        open_servers(server.kind, [bad.url, good.url], server.model, concurrency=16) as engine,
    ):
        bad.faults = faults
        counts = _all_at_once(engine, _requests(300))
    assert counts == Counter({request.id: 1 for request in _requests(300)})


def test_a_request_is_refused_at_once_and_never_retried(server: RunningServer) -> None:
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model) as engine,
    ):
        before = len(proxy.requests)
        proxy.faults = iter([status(400, "no such thing")])
        with pytest.raises(Refused, match=r"request 'r0': .* answered 400: no such thing"):
            engine.generate(_requests(1), SHORT)
        assert len(proxy.requests) == before + 1


def test_a_request_that_always_fails_stops_with_what_each_server_said(
    server: RunningServer,
) -> None:
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model, attempts=2) as engine,
    ):
        proxy.faults = lambda number, body: (
            status(500, "out of memory") if _is_ours(body) else passed
        )
        with pytest.raises(StageError, match=r"'r0' failed 2 times .*: .*out of memory"):
            engine.generate(_requests(1), SHORT)


def _prompt(body: Any) -> list[int]:
    return body.get("prompt", body.get("input_ids"))


def _is_ours(body: Any) -> bool:
    return _prompt(body)[:2] == [5, 6] and len(_prompt(body)) == 3


def test_generations_that_a_server_never_answers_move_to_another(server: RunningServer) -> None:
    """Its signs of life go on; that the others are faster gives it away."""
    with (
        FaultyProxy(server.url) as mute,
        FaultyProxy(server.url) as good,
        open_servers(server.kind, [mute.url, good.url], server.model, concurrency=8) as engine,
    ):

        def asked() -> list[Seen]:
            return [seen for seen in mute.requests if _is_ours(seen.body)]

        async def second(exchange: Exchange) -> web.StreamResponse:
            while not asked():  # the one that is ready first would do all by itself
                await asyncio.sleep(0.02)
            return await passed(exchange)

        mute.faults = lambda number, body: never if _is_ours(body) else passed
        good.faults = lambda number, body: second if _is_ours(body) else passed
        counts = _all_at_once(engine, _requests(100))
        mute.wait_until(lambda: len(mute.left) >= len(asked()))
    assert counts == Counter({request.id: 1 for request in _requests(100)})


def test_a_lone_server_that_hangs_in_everything_is_waited_for_until_it_answers(
    server: RunningServer,
) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "out of service" in line:
            proxy.everything_hangs = False

    times = {"connect_seconds": 0.5, "stall_seconds": 1.5}
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model, say=say, **times) as engine,
    ):
        stream = engine.stream([[Ask(request, SHORT) for request in _requests(200)]])
        found = [next(stream)]
        proxy.everything_hangs = True
        found += stream
    assert any("no progress" in line for line in said), said
    assert any(line.startswith(f"{proxy.url} is ready again") for line in said), said
    assert sorted(c.id for c in found) == sorted(r.id for r in _requests(200))


def test_a_generation_given_up_ends_at_the_server_too(server: RunningServer) -> None:
    long = Sampling(temperature=1.0, max_new_tokens=900)
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model) as engine,
    ):
        before = len(proxy.requests)
        proxy.faults = lambda number, body: passed if _prompt(body) == [5, 6, 7] else slow(60)
        stream = engine.stream([[Ask(r, long if i else SHORT) for i, r in enumerate(_requests(8))]])
        assert next(stream).id == "r0"
        stream.close()
        proxy.wait_until(lambda: len(proxy.left) >= 7)
        assert len(proxy.requests) == before + 8


def test_the_deadline_stops_with_what_is_finished(server: RunningServer) -> None:
    with (
        FaultyProxy(server.url) as proxy,
        open_servers(server.kind, [proxy.url], server.model, deadline_minutes=0.25) as engine,
    ):
        proxy.faults = itertools.chain([passed], itertools.repeat(never))
        stream = engine.stream([[Ask(request, SHORT) for request in _requests(4)]])
        assert next(stream).id
        with pytest.raises(StageError, match=r"deadline_minutes=0\.25 have passed"):
            list(stream)


def test_a_slow_server_is_given_less(server: RunningServer) -> None:
    with (
        FaultyProxy(server.url) as tired,
        FaultyProxy(server.url) as good,
        open_servers(
            server.kind, [tired.url, good.url], server.model, concurrency=4, slow_factor=100
        ) as engine,
    ):
        first = len(tired.requests), len(good.requests)
        tired.faults = lambda number, body: held(lambda: len(good.requests) - first[1] >= 90)
        counts = _all_at_once(engine, _requests(120))
        shares = len(tired.requests) - first[0], len(good.requests) - first[1]
    # What is held for long may be asked of the other too.
    assert len(counts) == 120 and shares[0] < shares[1] / 2, shares
