"""Serve simulated nodes over real HTTP on loopback, for demos and for tests of code that opens sockets.

The server is small and its own, because faults must be real: a cut aborts the connection inside a chunk, a dead node
has no listener, a frozen one accepts and sends nothing. (A black hole is not possible on loopback: it accepts and is
silent.) `serve` runs on the current loop, `sim_cluster` in a thread, `spawn` (spawn.py) in another process.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, TypeVar, cast

import httptools

from sollol.sim.faults import FaultEvent, apply
from sollol.sim.models import NodeSpec
from sollol.sim.node import SimNode
from sollol.sim.reply import SimReply
from sollol.transport.base import Call, TransportFault
from sollol.transport.event_loop import new_loop as new_loop

T = TypeVar("T")
_MAX_BODY_BYTES = 1 << 30
_START_WAIT_S = 10.0


class _Connection(asyncio.Protocol):
    """Answer the requests of one client in order."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._node = served.node
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[tuple[Call, bool]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._url = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._size = 0
        self._writable = asyncio.Event()

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._served.connections[self] = None
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._served.connections.pop(self, None)
        self._writable.set()
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()

    # httptools
    def on_message_begin(self) -> None:
        self._url, self._headers, self._body, self._size = b"", [], [], 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > _MAX_BODY_BYTES:
            self.transport.abort()
        self._body.append(body)

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        call = Call(
            method, self._url.decode("latin-1"), b"".join(self._body), headers=tuple(self._headers), stream=True
        )
        self._waiting.append((call, self._parser.should_keep_alive()))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._answer_all())

    async def _answer_all(self) -> None:
        try:
            while self._waiting:
                call, keep = self._waiting.popleft()
                await self._answer(call)
                if not keep:
                    self.transport.close()
                    return
        except TransportFault:
            self.transport.abort()
        except ConnectionError:
            pass
        except Exception:
            self.transport.abort()  # never leave a client hanging on a bug of ours
            raise
        finally:
            self._task = None

    async def _answer(self, call: Call) -> None:
        if self._node.state == "unreachable":
            await asyncio.Event().wait()
        reply = await self._node.handle(call)
        try:
            chunked = "transfer-encoding" in reply.headers
            self.transport.write(_head(reply))
            if call.method == "HEAD":
                await reply.read()
                return
            async for piece in reply:
                await self._send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked:
                await self._send(b"0\r\n\r\n")
        finally:
            await reply.aclose()

    async def _send(self, data: bytes) -> None:
        await self._node.machine.work(0.0)  # a frozen node does not write either
        self.transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()
        if self.transport.is_closing():
            raise ConnectionResetError


def _head(reply: SimReply) -> bytes:
    lines = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    lines += [f"{name.title()}: {value}" for name, value in reply.headers.items()]
    lines.append(f"Date: {formatdate(usegmt=True)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Served:
    """Listen for one node. `close` ends it; die and revive of the node close and open its port."""

    def __init__(self, node: SimNode, host: str) -> None:
        self.node = node
        self.host = host
        self.port = 0
        self.connections: dict[_Connection, None] = {}
        self._server: asyncio.Server | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Return the URL of the node."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def listen(self, port: int) -> None:
        """Open the port; 0 takes a free one."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), self.host, port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    def follow(self, schedule: Sequence[FaultEvent]) -> None:
        """Start the faults of a schedule that are for this node or for all, in seconds from now."""
        loop = asyncio.get_running_loop()
        own = [event for event in schedule if event.node in ("", self.url.removeprefix("http://"))]
        self._timers += [loop.call_later(event.at_s, apply, self.node, event) for event in own]

    def state_changed(self, node: SimNode) -> None:
        """Close or open the port after the node has died or started again."""
        if node.state == "down":
            self._stop_listening()
            for connection in list(self.connections):
                connection.transport.abort()
        elif node.state == "up" and self._server is None:
            task = asyncio.get_running_loop().create_task(self.listen(self.port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """Close the port and all connections."""
        for timer in self._timers:
            timer.cancel()
        if self.state_changed in self.node.on_state:
            self.node.on_state.remove(self.state_changed)
        self._stop_listening()
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


async def serve(
    node: SimNode | NodeSpec,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    schedule: Sequence[FaultEvent] = (),
) -> Served:
    """Serve a node on a port (0: a free one) of the running loop."""
    node = node if isinstance(node, SimNode) else SimNode(node)
    served = Served(node, host)
    await served.listen(port)
    node.on_state.append(served.state_changed)
    served.follow(schedule)
    return served


class Cluster(Sequence[str]):
    """Hold the URLs of nodes that run in a thread, and their switches.

    For example `cluster.do(lambda nodes: nodes[0].die())`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, served: list[Served]) -> None:
        self._loop = loop
        self._served = served
        self.urls = [one.url for one in served]
        self.nodes = [one.node for one in served]

    def __getitem__(self, place: Any) -> Any:
        return self.urls[place]

    def __len__(self) -> int:
        return len(self.urls)

    def do(self, action: Callable[[list[SimNode]], T]) -> T:
        """Run `action(nodes)` on the nodes' own thread, and return its result."""

        async def act() -> T:
            found = action(self.nodes)
            await asyncio.sleep(0)
            await asyncio.gather(*(task for one in self._served for task in one._tasks))
            return found

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result(_START_WAIT_S)


@contextmanager
def sim_cluster(specs: Iterable[NodeSpec | SimNode] | int = 3) -> Iterator[Cluster]:
    """Serve nodes on free loopback ports, in a background thread, for the time of the block.

    A number stands for that many default nodes.
    """
    wanted = [NodeSpec(seed=i) for i in range(specs)] if isinstance(specs, int) else list(specs)
    loop = new_loop()
    thread = threading.Thread(target=loop.run_forever, name="sollol-sim", daemon=True)
    thread.start()

    async def start() -> list[Served]:
        return [await serve(spec) for spec in wanted]

    async def stop(served: list[Served]) -> None:
        for one in served:
            await one.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    served: list[Served] = []
    try:
        served = asyncio.run_coroutine_threadsafe(start(), loop).result(_START_WAIT_S)
        yield Cluster(loop, served)
    finally:
        asyncio.run_coroutine_threadsafe(stop(served), loop).result(_START_WAIT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_START_WAIT_S)
        loop.close()


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port without a listener."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
