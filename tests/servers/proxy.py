"""A reverse proxy before a server that spoils chosen answers to generation requests."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from tests.servers.running import free_port

GENERATION = ("/v1/completions", "/generate")
# They belong to one connection, and there are two.
_HOP_HEADERS = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@dataclass
class Seen:
    """A generation request as the proxy saw it."""

    number: int  # from 0, by arrival
    body: Any  # parsed
    came: float  # time.monotonic()
    left: bool = False  # the client left before its answer
    done: bool = False  # the answer was sent, or the proxy cut the connection


@dataclass(frozen=True)
class Exchange:
    """One request in the hands of a fault."""

    request: web.Request
    seen: Seen
    forward: Callable[[], Awaitable[web.Response]]  # the server's whole answer


Fault = Callable[[Exchange], Awaitable[web.StreamResponse]]
Faults = Callable[[int, Any], Fault] | Iterator[Fault]


async def passed(exchange: Exchange) -> web.StreamResponse:
    """The server's own answer."""
    return await exchange.forward()


def status(code: int, body: str = "no", **headers: str) -> Fault:
    """An error, and the server hears nothing; `Retry_After="1"` gives the header Retry-After."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}

    async def fault(exchange: Exchange) -> web.StreamResponse:
        return web.Response(status=code, text=body, headers=names)

    return fault


async def garbage(exchange: Exchange) -> web.StreamResponse:
    """200 and text that is no JSON, though it says so."""
    return web.Response(text='{"choices": [{"te', content_type="application/json")


async def not_the_answer(exchange: Exchange) -> web.StreamResponse:
    """200 and JSON of another shape."""
    return web.json_response({"status": "ok", "items": [1, 2]})


async def half(exchange: Exchange) -> web.StreamResponse:
    """The first half of the server's answer, then the end of the connection."""
    answer = await exchange.forward()
    body = answer.body
    assert isinstance(body, bytes)
    cut = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
    cut.content_length = len(body)
    await cut.prepare(exchange.request)
    await cut.write(body[: len(body) // 2])
    exchange.seen.done = True
    assert exchange.request.transport is not None
    exchange.request.transport.close()
    return cut


async def reset(exchange: Exchange) -> web.StreamResponse:
    """The connection is reset before any byte, and the server hears nothing."""
    exchange.seen.done = True
    transport = exchange.request.transport
    assert transport is not None
    # Without a time to linger, closing sends a reset.
    linger = struct.pack("ii", 1, 0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
    return web.Response()


async def never(exchange: Exchange) -> web.StreamResponse:
    """No answer, until the client leaves; the server hears nothing."""
    return await asyncio.Event().wait()  # type: ignore[return-value]


def slow(seconds: float, then: Fault = passed) -> Fault:
    """Wait before the request goes on."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(exchange)

    return fault


def held(condition: Callable[[], bool]) -> Fault:
    """Wait until `condition` before the request goes on."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        while not condition():
            await asyncio.sleep(0.01)
        return await exchange.forward()

    return fault


def edit(change: Callable[[Any], Any]) -> Fault:
    """The server's answer after `change` of the parsed JSON, in place or as what it returns."""

    async def fault(exchange: Exchange) -> web.StreamResponse:
        answer = await exchange.forward()
        assert isinstance(answer.body, bytes)
        value = json.loads(answer.body)
        changed = change(value)
        return web.json_response(value if changed is None else changed, status=answer.status)

    return fault


@dataclass
class FaultyProxy:
    """`with FaultyProxy(server.url) as proxy:` listens on `proxy.url`, in a thread of its own.

    `faults` says what happens to each generation request: a callable of its number and body, or
    an iterator, after whose end requests pass. All else passes, unless `everything_hangs`. Both
    may be set at any time. An answer is sent on only when it is whole: there is no streaming.
    """

    target: str
    faults: Faults = field(default_factory=lambda: iter(()))
    everything_hangs: bool = False
    requests: list[Seen] = field(default_factory=list)
    url: str = ""

    @property
    def left(self) -> list[int]:
        """The numbers of the requests whose client left before the answer."""
        return [seen.number for seen in list(self.requests) if seen.left]

    def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait for something that the proxy sees a moment later, as that a client has left."""
        last = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < last, f"not within {seconds} s: {self.requests}"
            time.sleep(0.01)

    def __enter__(self) -> FaultyProxy:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._closing = False
        self._client = aiohttp.ClientSession(
            auto_decompress=False,
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1
        )
        await self._runner.setup()
        port = free_port()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{port}"

    async def _close(self) -> None:
        self._closing = True
        await self._runner.cleanup()
        await self._client.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        seen = None
        if request.path in GENERATION:
            # Numbered before the body is read: by arrival.
            seen = Seen(len(self.requests), None, time.monotonic())
            self.requests.append(seen)
        try:
            body = await request.read()
            if self.everything_hangs:
                await asyncio.Event().wait()
            if seen is None:
                return await self._forward(request, body)
            seen.body = json.loads(body)
            exchange = Exchange(request, seen, lambda: self._forward(request, body))
            answer = await self._choose(seen)(exchange)
            seen.done = True
            return answer
        except asyncio.CancelledError:
            if seen is not None:
                seen.left = not (seen.done or self._closing)
            raise

    def _choose(self, seen: Seen) -> Fault:
        faults = self.faults
        return faults(seen.number, seen.body) if callable(faults) else next(faults, passed)

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP_HEADERS}
        url = self.target + request.path_qs
        try:
            async with self._client.request(
                request.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP_HEADERS}
                return web.Response(status=answer.status, headers=kept, body=await answer.read())
        except aiohttp.ClientError as error:
            return web.Response(status=502, text=f"no answer from the server: {error}")
