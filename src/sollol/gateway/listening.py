"""Bind a server to an address, with an error that names the setting to change."""

from __future__ import annotations

import errno
import socket

from sollol.duties import Duties
from sollol.errors import AddressUnavailable
from sollol.http_server.server import HttpServer
from sollol.transport.outbox import Outbox


async def bound_port(server: HttpServer, duties: Duties, outbox: Outbox, host: str, port: int, setting: str) -> int:
    """Listen, and return the port.

    Raises:
        AddressUnavailable: The address cannot be bound.
    """
    try:
        return await server.listen(duties, outbox, host, port)
    except (OSError, UnicodeError) as error:
        raise AddressUnavailable(
            f"cannot listen on {host}:{port}: {error}; choose another {setting}", _may_pass(error)
        ) from None


def _may_pass(error: Exception) -> bool:
    """Check whether an error of listening may end by itself: an address in use, or a network that is down."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)
