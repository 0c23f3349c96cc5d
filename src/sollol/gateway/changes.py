"""Classify errors of listening, and compare new settings with those in use."""

from __future__ import annotations

import errno
import socket

import msgspec

from sollol.gateway.settings import GatewaySettings, Listen


def may_pass(error: Exception) -> bool:
    """Check whether an error of listening may end by itself: an address in use, or a network that is down."""
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return isinstance(error, OSError) and error.errno in (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def not_taken(new: GatewaySettings, old: GatewaySettings) -> list[str]:
    """Return a message for each new setting that a running gateway cannot apply."""
    found = [
        f"{name} is {getattr(new.listen, name)!r} now, and {getattr(old.listen, name)!r} stays in use"
        for name in ("host", "port")
        if getattr(new.listen, name) != getattr(old.listen, name)
    ]
    if old.nodes and not new.nodes:
        found.append("nodes names none now, and those before stay in use")
    return found


def listening_as(new: Listen, old: Listen) -> Listen:
    """Return the new settings with the old host and port."""
    return msgspec.structs.replace(new, host=old.host, port=old.port)
