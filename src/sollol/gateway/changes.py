"""Answer small questions of the gateway's life: who it is, and what of new settings it can take up."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Final

import msgspec

from sollol.gateway.settings import GatewaySettings, Listen

_OWN_SUFFIXES: Final = (".localhost", ".local", ".internal")


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


def is_own_host(host: bytes) -> bool:
    """An address, localhost, or a name that only means something here; not the name of some site."""
    name = host.rsplit(b":", 1)[0] if host[-1:] != b"]" else host
    if name in (b"localhost", b"127.0.0.1"):
        return True
    text = name.decode("latin-1").lower().strip("[]")
    if text.endswith(_OWN_SUFFIXES) or text in ("localhost", socket.gethostname().lower()):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
