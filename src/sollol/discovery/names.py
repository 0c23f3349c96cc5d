"""Names to addresses, within a bound.

`getaddrinfo` has no timeout, and the threads of an event loop's executor are waited for when the program ends: one dead
name server would hold it for ten seconds. So each name gets a daemon thread, at most 16 at a time; who stops waiting
leaves it behind, and nobody waits for it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading

from sollol.discovery.networks import IP

MAX_LOOKUPS = 16


class Names:
    """Resolves names on the running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(MAX_LOOKUPS)

    async def resolve(self, host: str) -> tuple[IP, ...]:
        """All addresses of a host, the system's preferred one first; none if it is not known."""
        try:
            return (ipaddress.ip_address(host),)
        except ValueError:
            pass
        async with self._slots:
            future: asyncio.Future[tuple[IP, ...]] = self._loop.create_future()
            threading.Thread(target=self._look_up, args=(host, future), daemon=True).start()
            return await future

    def _look_up(self, host: str, future: asyncio.Future[tuple[IP, ...]]) -> None:
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            entries = []
        found = tuple(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in entries))
        try:
            self._loop.call_soon_threadsafe(_settle, future, found)
        except RuntimeError:  # the search is over and its loop closed
            pass


def _settle(future: asyncio.Future[tuple[IP, ...]], found: tuple[IP, ...]) -> None:
    if not future.done():
        future.set_result(found)
