"""Refuse pages of other sites that reach a local server through a browser.

A page of another site can let its own name point at 127.0.0.1 (DNS rebinding) and then read this server as its own
site. The Host header still has that name. So only hosts that such a site cannot have are accepted: addresses,
`localhost`, names of the local network, this machine's own name, and those in the settings.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from typing import Final

_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal")


def is_loopback(host: str) -> bool:
    """Check for localhost, or a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def name_in(host: str) -> str:
    """Return the name of a Host header in lower case, without port and brackets."""
    text = host.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


class HostGuard:
    """Check the Host of requests. `allowed`: further names, and `*.example.org` for all below one."""

    def __init__(self, bound: str, allowed: Iterable[str] = ()) -> None:
        """Accept also the address or name that the server listens on."""
        own = socket.gethostname().lower()
        allowed = [name.lower() for name in allowed]
        self._names = {"localhost", own, own.partition(".")[0], bound.lower().rstrip("."), *allowed} - {""}
        self._suffixes = (*_LOCAL_SUFFIXES, *(name[1:] for name in allowed if name.startswith("*.")))

    def allows(self, host: bytes | None) -> bool:
        """Check whether a Host is this server's. HTTP/1.0, which no browser uses, may have none."""
        if host is None:
            return True
        name = name_in(host.decode("latin-1"))
        if name in self._names or name.endswith(self._suffixes):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
