"""The seam between deciding and the world: one call goes to one node, one reply comes back.

Two implementations: `sollol.transport.http` (sockets) and `sollol.sim.world` (virtual time). Everything
above (dispatcher, pools, probes) knows only this file, so the same code runs in both universes.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from typing import Final, Protocol

from sollol.core.endpoint import Endpoint
from sollol.transport.call import Call as Call
from sollol.transport.call import Timeouts as Timeouts


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


ERROR_MOST: Final = 64 * 1024  # bytes of an error that are read
RawHeaders = list[tuple[bytes, bytes]]


class Transport(Protocol):
    """Cancelling `send`, or closing the reply, closes the connection at once: to an Ollama node that is the
    only cancel there is."""

    async def send(self, node: Endpoint, call: Call) -> Reply: ...
    async def aclose(self) -> None: ...


class Fault(enum.Enum):
    """How a call can end without an answer."""

    CONNECT = "connect"  # refused, unreachable, name not found, TLS failed: nothing was sent
    LOCAL = "local"  # this process could not even try: no file descriptor is left here
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
