"""Names to addresses, for a search: a name that is not known has none."""

from __future__ import annotations

import ipaddress

from sollol.discovery.networks import IP
from sollol.transport.resolver import Resolver


class Names:
    """Resolves names on the running event loop; see `sollol.transport.resolver` for how long that takes."""

    def __init__(self) -> None:
        self._resolver = Resolver()

    async def resolve(self, host: str) -> tuple[IP, ...]:
        """All addresses of a host, the system's preferred one first; none if it is not known."""
        try:
            found = await self._resolver.resolve(host)
        except (OSError, UnicodeError):
            return ()
        return tuple(dict.fromkeys(ipaddress.ip_address(address.partition("%")[0]) for address in found))
