"""HTTP/1.1 transport over sockets, written for this product because every call goes through it.

A general client costs more than the call. On loopback httpx takes 510 µs of CPU a call from a thread and 1,267 µs from
asyncio, and grows slower with every idle connection; `http.client` ends silently when a chunked answer is cut. Behind
an embedding batch or the gateway that cost limits the throughput.

Instead, `asyncio.Protocol` and llhttp (the parser of Node.js, through httptools) run on asyncio's or uvloop's loop.
`send` takes an idle connection, writes one buffer and awaits one future. Nodes need no HTTP/2, redirects, cookies,
compression or proxies. The price is a thousand lines that must be right about framing, hostile input and time, so
`tests/transport/test_http.py` cuts answers at every byte.

Reuse. Idle connections of a node are a stack: the most recent one is taken first, and the others age out. A node may
close an idle connection just as it is taken. If a reused connection closes before the first byte of the answer, the
call is sent once more on a new one (repeating a request to a model does no harm). A body that is an iterator cannot be
sent again, so it gets a new connection.

Over 400 lines, because a call, its connections and their ends are one state machine.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final, NamedTuple

from sollol.core.endpoint import Endpoint
from sollol.errors import BadInput
from sollol.transport import faults
from sollol.transport.base import Call, Fault, RawHeaders, Reply, TransportFault
from sollol.transport.client_connection import Connection, ConnectionLimits
from sollol.transport.dialing import Dialer, NameTimeout
from sollol.transport.outbox import Outbox
from sollol.transport.request_heads import RequestHeads

MAX_HEAD_BYTES: Final = 64 * 1024  # Ollama's heads have about 200 bytes; the limit protects the memory
MAX_BODY_BYTES: Final = 1024**3  # 100,000 vectors of 1,024 floats as JSON; only for answers gathered in memory
HIGH_WATER_BYTES: Final = 256 * 1024  # buffered bytes of a streamed answer; beyond it reading from the node pauses
MAX_IDLE_PER_NODE: Final = 64  # enough for a burst; an idle connection holds a file descriptor on both sides
MAX_IDLE_S: Final = 55.0  # below the 60 s and more after which gateways (nginx, cloud balancers) drop idle connections
MAX_NODES: Final = 4096  # nodes kept; a scan of a subnet calls many only once
_CLOSE_WAIT_S: Final = 1.0  # an aborted socket is closed within a turn or two of the loop


class Stats(NamedTuple):
    """Counts since the construction of the transport; `open` and `idle` are current."""

    requests: int
    opened: int
    reused: int
    open: int
    idle: int


class _Host:
    """Request heads and connections of one node."""

    __slots__ = ("_max_idle", "connections", "heads", "idle", "node", "url")

    def __init__(self, node: Endpoint, max_idle: int) -> None:
        self.node = node
        self.url = node.url
        self.heads = RequestHeads(node)
        self.idle: list[Connection] = []
        self.connections: set[Connection] = set()
        self._max_idle = max_idle

    def take(self) -> Connection | None:
        """Return the most recent idle connection, None without one. Closed connections remove themselves."""
        return self.idle.pop() if self.idle else None

    def release(self, connection: Connection) -> bool:
        """Add an idle connection; return False if the pool is full."""
        if len(self.idle) >= self._max_idle:
            return False
        self.idle.append(connection)
        return True

    def forget(self, connection: Connection) -> None:
        """Remove a closed connection."""
        self.connections.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)


class Exchange:
    """Base class of receivers that get an answer by callbacks.

    Callbacks run in the loop turn of the arrival, without a task or future. Pass an exchange to `HttpTransport.start`.
    With `stream`: `on_head`, `on_body` for the bytes of one arrival, `on_end`. Without: `on_whole`, or `on_end` with
    the fault. `on_end(None)` is a good end. No callback runs after `abort`, nor inside `start`.
    """

    __slots__ = (
        "_body",
        "_call",
        "_connecting",
        "_connection",
        "_head",
        "_host",
        "_over",
        "_transport",
        "headers",
        "paused",
        "reused",
    )

    def __init__(self) -> None:
        self._over = self.reused = self.paused = False
        self.headers: RawHeaders = []  # set for a status other than 200
        self._connecting: asyncio.Task[None] | None = None
        self._connection: Connection | None = None

    # --- callbacks ---

    def on_head(self, status: int, headers: RawHeaders) -> None:
        """Receive the status and the headers of a streamed answer."""
        ...

    def on_body(self, piece: bytes) -> None:
        """Receive the bytes of one arrival of a streamed answer."""
        ...

    def on_whole(self, status: int, body: bytes) -> None:
        """Receive a complete answer."""
        ...

    def on_end(self, fault: TransportFault | None) -> None:
        """Receive the end: None for a good one, else its fault."""
        ...

    # --- control ---

    def abort(self) -> None:
        """Close the connection: Ollama has no other cancel. Idempotent."""
        self._over = True
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()
            self._connection = None

    def pause(self) -> None:
        """Pause reading a streamed body; the node has to wait."""
        if self._connection is not None:
            self.paused = True
            self._connection.pause()

    def resume(self) -> None:
        """Continue reading a streamed body."""
        self.paused = False
        if self._connection is not None:
            self._connection.resume()

    # --- transport and connection ---

    def begin(self, transport: HttpTransport, host: _Host, call: Call, body: bytes) -> None:
        """Send the call on an idle connection, or on a new one."""
        self._transport = transport
        self._host = host
        self._head = head = transport.head_of(host, call)
        self._call = call
        self._body = body
        connection = host.take()
        if connection is not None:
            self.reused = True
            self._connection = connection
            connection.start_exchange(head, body, call, self)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())

    async def _connect(self) -> None:
        try:
            connection = await self._transport._connect(self._host, self._call.timeouts.connect_s)
        except TransportFault as fault:
            self._connecting = None
            self.failed(fault, False)
            return
        self._connecting, self._connection = None, connection
        connection.start_exchange(self._head, self._body, self._call, self)

    def done(self, status: int, body: bytes) -> None:
        """Finish a complete answer; `body` is the part that no callback got."""
        self._over, self._connection = True, None
        if self._call.stream:
            self.on_end(None)
        else:
            self.on_whole(status, body)

    def handler_failed(self, error: Exception) -> None:
        """End the call after an exception in a callback."""
        self._over, self._connection = True, None
        self.on_end(faults.handler_failed(self._host.url, error))

    def failed(self, error: BaseException, silent: bool) -> None:
        """End the call, or repeat it on a new connection. `silent`: no byte of an answer was received."""
        if self._over:
            return
        self._connection = None
        fault = error if isinstance(error, TransportFault) else faults.cut(self._host.url, None, _as_exception(error))
        if self.reused and silent and fault.fault is Fault.CUT and not self._transport.closed:
            self.reused = False  # it went stale while idle
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
            return
        self._over = True
        self.on_end(fault)


def _as_exception(error: BaseException) -> Exception | None:
    return error if isinstance(error, Exception) else None


class HttpTransport:
    """Send calls to nodes over HTTP/1.1 and keep their connections. Belongs to one event loop at a time.

    `ssl_context` is for https nodes; by default the system's authorities are trusted.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_head_bytes: int = MAX_HEAD_BYTES,
        high_water_bytes: int = HIGH_WATER_BYTES,
        max_idle_per_node: int = MAX_IDLE_PER_NODE,
        max_idle_s: float = MAX_IDLE_S,
    ) -> None:
        self._ssl_context = ssl_context
        self._limits = ConnectionLimits(max_head_bytes, max_body_bytes, high_water_bytes, max_idle_s)
        self._max_idle = max_idle_per_node
        self._hosts: dict[Endpoint, _Host] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._requests = self._opened = self._reused = 0
        self.refuses_gateways = False  # for a pool that serves as a gateway itself
        self.propagate: Callable[[], bytes] | None = None  # return further header lines of the present request

    async def send(self, node: Endpoint, call: Call) -> Reply:
        """Send a call; see `Transport`.

        Raises:
            TransportFault: No answer arrived.
            BadInput: The call must not be sent.
        """
        if asyncio.get_running_loop() is not self._loop:
            self._move()
        host = self._hosts.get(node)
        if host is None:
            host = self._add_host(node)
        head = self.head_of(host, call)
        self._requests += 1
        body = call.body
        if not isinstance(body, bytes):
            return await self._send_upload(host, head, call)
        connection = host.take()
        while True:
            reused = connection is not None
            if connection is None:
                connection = await self._connect(host, call.timeouts.connect_s)
            else:
                self._reused += 1
            waiter = connection.start(head, body, call)
            turn = connection.turn
            try:
                return await waiter
            except TransportFault as fault:
                if not (reused and connection.silent and fault.fault is Fault.CUT) or self._closed:
                    raise
                connection = None  # it went stale while idle
            except asyncio.CancelledError:
                connection.abandon(turn)
                raise

    def start(self, node: Endpoint, call: Call, exchange: Exchange) -> None:
        """Send a call whose answer goes to an Exchange, in this loop turn if a connection is idle.

        The body must be bytes. Call it on the loop of `on_this_loop`.

        Raises:
            BadInput: The call must not be sent.
        """
        host = self._hosts.get(node)
        if host is None:
            host = self._add_host(node)
        body = call.body
        assert isinstance(body, bytes)
        self._requests += 1
        exchange.begin(self, host, call, body)
        if exchange.reused:
            self._reused += 1

    def head_of(self, host: _Host, call: Call) -> bytes:
        """Return the head of a call to a node.

        Raises:
            BadInput: The call must not be sent.
        """
        head = host.heads.for_call(call)
        if self.propagate is None or not (lines := self.propagate()):
            return head
        begin = head.index(b"\r\n") + 2
        return b"%b%b%b" % (head[:begin], lines, head[begin:])

    def on_this_loop(self) -> Outbox:
        """Bind the transport to the running loop; return the outbox for writes at the end of a turn."""
        if asyncio.get_running_loop() is not self._loop:
            self._move()
        return self.outbox

    def peer(self, node: Endpoint) -> tuple[str, int] | None:
        """Return the address and port of the last connection to a node, None before the first."""
        return None if self._loop is None else self._dialer.peers.get((node.host, node.port))

    @property
    def closed(self) -> bool:
        """True after `aclose` or `abandon`."""
        return self._closed

    async def _send_upload(self, host: _Host, head: bytes, call: Call) -> Reply:
        assert not isinstance(call.body, bytes)
        if not hasattr(call.body, "__aiter__"):
            raise BadInput(f"call to {host.url}: the body is {type(call.body).__name__}; expected bytes or pieces")
        connection = await self._connect(host, call.timeouts.connect_s)
        waiter = connection.start_upload(head, call.body, call)
        turn = connection.turn
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.abandon(turn)
            raise

    @property
    def stats(self) -> Stats:
        """Counters and open connections."""
        hosts = self._hosts.values()
        return Stats(
            requests=self._requests,
            opened=self._opened,
            reused=self._reused,
            open=sum(len(host.connections) for host in hosts),
            idle=sum(len(host.idle) for host in hosts),
        )

    def __repr__(self) -> str:
        s = self.stats
        state = "closed" if self._closed else f"{s.open} connections ({s.idle} idle) · {s.requests} requests"
        return f"<HttpTransport {state}>"

    def renewed(self) -> HttpTransport:
        """Return a new transport with these settings and no connections, for another process or event loop."""
        limits = self._limits
        return HttpTransport(
            ssl_context=self._ssl_context,
            max_body_bytes=limits.body_bytes,
            max_head_bytes=limits.head_bytes,
            high_water_bytes=limits.inbox_bytes,
            max_idle_per_node=self._max_idle,
            max_idle_s=limits.idle_age_s,
        )

    def abandon(self) -> None:
        """Abort every connection without waiting, since their event loop has ended."""
        self._closed = True
        connections = [connection for host in self._hosts.values() for connection in host.connections]
        self._hosts.clear()
        for connection in connections:
            try:
                connection.abort()
            except RuntimeError:  # the loop is closed; the socket closes with its object
                pass

    async def aclose(self) -> None:
        """Close every connection; running calls end with a TransportFault. Idempotent."""
        self._closed = True
        connections = [connection for host in self._hosts.values() for connection in host.connections]
        self._hosts.clear()
        for connection in connections:
            connection.abort()
        try:
            async with asyncio.timeout(_CLOSE_WAIT_S):
                for connection in connections:
                    await connection.lost.wait()
        except TimeoutError:
            pass

    # -- connecting ------------------------------------------------------------------------------------

    def _move(self) -> None:
        """Bind to the running loop; drop everything that belongs to an earlier one."""
        self._loop = loop = asyncio.get_running_loop()
        self.outbox = Outbox(loop)
        self._dialer = Dialer()
        self._hosts.clear()

    def _add_host(self, node: Endpoint) -> _Host:
        if len(self._hosts) >= MAX_NODES:
            self._hosts = {key: host for key, host in self._hosts.items() if host.connections}
        host = self._hosts[node] = _Host(node, self._max_idle)
        return host

    async def _connect(self, host: _Host, within_s: float | None) -> Connection:
        self._refuse_if_closed(host)
        loop = asyncio.get_running_loop()
        node = host.node
        context = self._tls() if node.scheme == "https" else None
        try:
            connection: Connection = await self._dialer.connect(
                node, lambda: Connection(loop, self.outbox, host.url, host, self._limits), context, within_s
            )
        except NameTimeout:
            raise faults.name_timeout(host.url, node.host, within_s) from None
        except TimeoutError:
            raise faults.connect_timeout(host.url, within_s) from None
        except (OSError, UnicodeError) as error:
            raise faults.refused(host.url, error) from error
        if self._closed or connection.closed:
            connection.abort()
            self._refuse_if_closed(host)
            raise faults.cut(host.url, None, None)
        host.connections.add(connection)
        self._opened += 1
        return connection

    def _refuse_if_closed(self, host: _Host) -> None:
        if self._closed:
            raise TransportFault(Fault.CONNECT, f"{host.url} was not called: the transport is closed")

    def _tls(self) -> ssl.SSLContext:
        if self._ssl_context is None:  # reading the system's authorities takes some 20 ms, so it is done when needed
            self._ssl_context = ssl.create_default_context()
        return self._ssl_context
