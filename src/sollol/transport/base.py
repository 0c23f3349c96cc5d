"""Protocol between the dispatcher and nodes: one call goes to one node, one reply comes back.

Two implementations: `sollol.transport.http` (sockets) and `sollol.sim.world` (virtual time). Dispatcher, pools and
probes depend on this file only, so the same code runs with both.
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

    Iterating yields pieces as they arrive, in any size; it raises TransportFault when the body ends early. `read()`
    returns the rest of the body. `aclose()` closes the connection of an incomplete body, so that the node stops
    working; it is idempotent, and does nothing after the end.
    """

    @property
    def status(self) -> int:
        """The HTTP status."""
        ...

    @property
    def headers(self) -> dict[str, str]:
        """The headers; names in lower case."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]: ...
    async def read(self) -> bytes:
        """Return the rest of the body."""
        ...

    async def aclose(self) -> None:
        """Close the connection unless the body is complete."""
        ...


ERROR_MOST: Final = 64 * 1024  # bytes read of an error's body
RawHeaders = list[tuple[bytes, bytes]]


class Transport(Protocol):
    """Send calls to nodes.

    Cancelling `send`, or closing the reply, closes the connection at once: Ollama has no other cancel.
    """

    async def send(self, node: Endpoint, call: Call) -> Reply:
        """Send a call; return its reply."""
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


class Fault(enum.Enum):
    """The reason of a call without an answer."""

    CONNECT = "connect"  # refused, unreachable, name not found, TLS failed: nothing was sent
    LOCAL = "local"  # this process is out of file descriptors
    CONNECT_TIMEOUT = "connect timeout"
    FIRST_BYTE_TIMEOUT = "first byte timeout"
    IDLE_TIMEOUT = "idle timeout"
    CUT = "cut"  # the connection ended inside the answer or before it
    PROTOCOL = "protocol"  # the received bytes are not HTTP
    TOO_LARGE = "too large"  # over the limit of a head or a body

    @property
    def is_timeout(self) -> bool:
        """True for each of the timeouts."""
        return self.value.endswith("timeout")


class TransportFault(Exception):
    """A call ended without an answer. `str()` is one line for the user, without credentials."""

    def __init__(self, fault: Fault, message: str) -> None:
        self.fault = fault
        super().__init__(message)
