"""A gateway over simulated nodes, both on real sockets, each in a thread of its own."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import httpx

from sollol.core.events import Submitted
from sollol.core.types import Task
from sollol.gateway.app import Gateway
from sollol.gateway.settings import GatewaySettings
from sollol.observe.journal import Entry
from sollol.pool.aio import AsyncOllamaPool
from sollol.sim import ModelSpec, NodeSpec
from sollol.sim.serve import new_loop
from sollol.transport.http import HttpTransport

T = TypeVar("T")
MODEL = "llama3.2"
WAIT_S = 10.0


def talker(number: int, tokens_per_s: float = 200.0, *, continues: bool = False, **more: Any) -> NodeSpec:
    """A node with MODEL in memory."""
    model = ModelSpec(MODEL, size_bytes=2_000_000_000, continues=continues, tools=True, mean_words=math.inf)
    given: dict[str, Any] = {"models": (model,), "loaded": (MODEL,), "load_bytes_per_s": 1e9} | more
    return NodeSpec(decode_tokens_per_s=tokens_per_s, prefill_tokens_per_s=20 * tokens_per_s, seed=number, **given)


def until(true: Callable[[], Any]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


class Stage:
    """The gateway's address, and a way onto its loop."""

    nodes: Any  # the simulated nodes behind it, where a fixture sets them

    def __init__(self, loop: asyncio.AbstractEventLoop, gateway: Gateway, port: int) -> None:
        self._loop = loop
        self.gateway = gateway
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._tasks: list[Task] = []
        gateway.engine.journal.subscribe(self._hear)

    def _hear(self, entry: Entry) -> None:
        if isinstance(entry.event, Submitted):
            self._tasks.append(entry.event.task)

    def client(self, **more: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT_S, trust_env=False, **more)

    def on_loop(self, work: Callable[[Gateway], Awaitable[T]]) -> T:
        async def run() -> T:
            return await work(self.gateway)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT_S)

    def look(self, read: Callable[[Gateway], T]) -> T:
        async def run(gateway: Gateway) -> T:
            return read(gateway)

        return self.on_loop(run)

    def last_task(self) -> Task:
        """The task that was submitted last."""

        return self.look(lambda gateway: self._tasks[-1])


@contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on a free port, for what no simulated node would say; its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def gateway_over(urls: Iterable[str], settings: GatewaySettings | None = None, **more: Any) -> Iterator[Stage]:
    """A gateway on a free port, closed at the end of the block."""
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway", daemon=True)
    thread.start()
    given = settings or GatewaySettings()
    urls = list(urls)

    async def start() -> tuple[Gateway, int]:
        transport = HttpTransport()
        pool = AsyncOllamaPool(urls, transport=transport, seed=1)
        gateway = Gateway(pool, given.listening(port=0), transport=transport, **more)
        port = await gateway.start()
        await pool.wait_ready()
        return gateway, port

    async def stop(gateway: Gateway) -> None:
        await gateway.aclose(0.0)
        await gateway.pool.aclose()

    gateway = None
    try:
        gateway, port = asyncio.run_coroutine_threadsafe(start(), loop).result(WAIT_S)
        yield Stage(loop, gateway, port)
    finally:
        if gateway is not None:
            asyncio.run_coroutine_threadsafe(stop(gateway), loop).result(WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(WAIT_S)
        loop.close()
