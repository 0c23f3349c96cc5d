"""Resolve names for a search: an unknown name has no addresses."""

from __future__ import annotations

import ipaddress

from sollol.discovery.networks import IP
from sollol.transport.resolver import Resolver


class Names:
    """Resolve names on the running event loop; see `sollol.transport.resolver` for its time limits."""

    def __init__(self) -> None:
        self._resolver = Resolver()

    async def resolve(self, host: str) -> tuple[IP, ...]:
        """Return all addresses of a host, the system's preferred one first; empty for an unknown name."""
        try:
            found = await self._resolver.resolve(host)
        except (OSError, UnicodeError):
            return ()
        return tuple(dict.fromkeys(ipaddress.ip_address(address.partition("%")[0]) for address in found))
