"""Answer small questions of the life of the gateway: may its address become free, what of new settings is taken up."""

from __future__ import annotations

import errno
import socket

import msgspec

from sollol.gateway.settings import GatewaySettings, Listen


def may_pass(error: Exception) -> bool:
    """Check whether somebody else only holds the address, or the network is not up yet."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def not_taken(new: GatewaySettings, old: GatewaySettings) -> list[str]:
    found = [
        f"{name} is {getattr(new.listen, name)!r} now, and {getattr(old.listen, name)!r} stays in use"
        for name in ("host", "port")
        if getattr(new.listen, name) != getattr(old.listen, name)
    ]
    if old.nodes and not new.nodes:
        found.append("nodes names none now, and those before stay in use")
    return found


def listening_as(new: Listen, old: Listen) -> Listen:
    return msgspec.structs.replace(new, host=old.host, port=old.port)
