"""The seam between deciding and the world: one call goes to one node, one reply comes back.

Two implementations: `sollol.nodes.http` (sockets) and `sollol.sim.world` (virtual time). Everything
above (dispatcher, pools, probes) knows only this file, so the same code runs in both universes.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import Protocol

from sollol.core.endpoint import Endpoint
from sollol.nodes.call import Call as Call
from sollol.nodes.call import Timeouts as Timeouts


class Reply(Protocol):
    """A status, headers (names in lower case) and a body.

    Iterating yields pieces as they arrive, in any cutting; it raises TransportFault when the body ends
    early. `read()` gathers the (rest of the) body. `aclose()` leaves: it closes the connection if the body is not
    complete, so that the node stops working; it is idempotent, and a no-op after the end."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> dict[str, str]: ...
    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self) -> bytes: ...
    async def aclose(self) -> None: ...


RawHeaders = list[tuple[bytes, bytes]]


class Sink(Protocol):
    """Who is told of a reply in the very turn of the loop in which it arrives: no task, no future in between.

    With `stream` of the call: `on_head`, `on_body` for what came together, `on_end`. Without: `on_whole`, or `on_end`
    with the fault. `on_end(None)` is a good end. Nothing is told after `Sending.abort()`, nor while `start` runs."""

    def on_head(self, status: int, headers: RawHeaders) -> None: ...
    def on_body(self, piece: bytes) -> None: ...
    def on_whole(self, status: int, headers: RawHeaders, body: bytes) -> None: ...
    def on_end(self, fault: TransportFault | None) -> None: ...


class Sending(Protocol):
    """A call under way for a Sink."""

    def abort(self) -> None:
        """Close the connection: the only cancel there is. Idempotent."""
        ...

    def pause(self) -> None:
        """Take no more of a streamed body for now: the node has to wait."""
        ...

    def resume(self) -> None: ...
    def within(self, idle_s: float) -> None:
        """From now on, this is how long the node may be silent inside its answer."""
        ...


class Transport(Protocol):
    """Cancelling `send`, or closing the reply, closes the connection at once: to an Ollama node that is the
    only cancel there is."""

    async def send(self, node: Endpoint, call: Call) -> Reply: ...
    async def aclose(self) -> None: ...


class SinkTransport(Transport, Protocol):
    """One that can tell a Sink as well: the gateway's."""

    def start(self, node: Endpoint, call: Call, sink: Sink) -> Sending:
        """The body must be bytes. Raises BadInput for a call that must not be sent."""
        ...


class Fault(enum.Enum):
    """How a call can end without an answer."""

    CONNECT = "connect"  # refused, unreachable, name not found, TLS failed: nothing was sent
    CONNECT_TIMEOUT = "connect timeout"
    FIRST_BYTE_TIMEOUT = "first byte timeout"
    IDLE_TIMEOUT = "idle timeout"
    CUT = "cut"  # the connection ended inside the answer or before it
    PROTOCOL = "protocol"  # what came is not HTTP
    TOO_LARGE = "too large"  # over the bound for a head or a body

    @property
    def is_timeout(self) -> bool:
        return self.value.endswith("timeout")


class TransportFault(Exception):
    """A call that ended without an answer. `str()` is one line for a person, without credentials."""

    def __init__(self, fault: Fault, message: str) -> None:
        self.fault = fault
        super().__init__(message)
