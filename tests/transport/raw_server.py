"""A server that says exactly the bytes a test wants, on a loopback socket, and remembers what it heard."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import pytest
import uvloop

from sollol.core.endpoint import Endpoint
from sollol.transport.http import HttpTransport

T = TypeVar("T")
Script = Callable[["Peer"], Awaitable[None]]
on_both_loops = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(10):
            return await main

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(bounded())


class Request(NamedTuple):
    line: str
    headers: dict[str, str]
    body: bytes


class Peer:
    """The server's end of one connection."""

    def __init__(self, server: RawServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer

    async def hear(self) -> Request:
        """The next request; raises IncompleteReadError when the client is gone."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        if "transfer-encoding" in headers:
            body = await self._chunks()
        else:
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        request = Request(line, headers, body)
        self.server.heard.append(request)
        self.server.has_heard.set()
        return request

    async def _chunks(self) -> bytes:
        pieces = []
        while True:
            size = int(await self.reader.readline(), 16)
            pieces.append(await self.reader.readexactly(size))
            assert await self.reader.readexactly(2) == b"\r\n"
            if not size:
                return b"".join(pieces)

    async def say(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if len(pieces) > 1:
                await asyncio.sleep(pause_s)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()

    async def client_left(self) -> float:
        """Wait until the client has closed; the loop's time of it."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass
        return asyncio.get_running_loop().time()


class RawServer:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.peers: list[Peer] = []
        self.heard: list[Request] = []
        self.has_heard = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.node = Endpoint("127.0.0.1", 1)

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        peer = Peer(self, reader, writer)
        self.peers.append(peer)
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort() if writer.get_extra_info("ssl_object") else writer.close()


def saying(*answers: bytes) -> Script:
    """Hear a request, say an answer, and so on; each connection begins again. The last answer repeats."""

    async def script(peer: Peer) -> None:
        for number in range(1_000_000):
            await peer.hear()
            await peer.say(answers[min(number, len(answers) - 1)])

    return script


def saying_once(answer: bytes) -> Script:
    """Hear one request, say the bytes, close."""

    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(answer)

    return script


def noting_when_the_client_leaves(first: bytes) -> tuple[Script, list[float]]:
    """A script that begins an answer, and the loop's times at which clients left it."""
    left: list[float] = []

    async def script(peer: Peer) -> None:
        await peer.hear()
        await peer.say(first)
        left.append(await peer.client_left())

    return script, left


@asynccontextmanager
async def serving(
    script: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[tuple[RawServer, HttpTransport]]:
    """A server with this script, and a transport with these settings."""
    raw = RawServer(script)
    server = await asyncio.start_server(raw.serve_one, host, 0, ssl=tls)
    raw.node = Endpoint(host, server.sockets[0].getsockname()[1], "https" if tls else "http")
    transport = HttpTransport(**settings)
    try:
        yield raw, transport
    finally:
        await transport.aclose()
        server.close()
        for task in list(raw.tasks):
            task.cancel()
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.gather(*raw.tasks, return_exceptions=True)
        await asyncio.sleep(0.002)
