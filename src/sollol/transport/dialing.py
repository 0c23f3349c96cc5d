"""Connect to the first address of a host that accepts (Happy Eyeballs, RFC 8305).

A name often has an unreachable IPv6 address beside a reachable IPv4 address. The addresses are tried in turn, the
families alternating, the next one STAGGER_S after the last or as soon as one fails; the first connection wins. The last
reached address is tried first the next time, so a dead address costs STAGGER_S once.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, zip_longest
from typing import Any, Final, TypeVar

from sollol.core.endpoint import Endpoint
from sollol.transport.resolver import Addresses, Resolver

STAGGER_S: Final = 0.25  # RFC 8305, section 5
# A machine that vanished (power, cable) sends nothing, like one that computes. TCP keep-alive distinguishes them, also
# for a busy or stopped program: seconds of silence before the first probe, between probes, and the number of probes.
_ALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6))

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Dialer:
    """Open connections to nodes on the event loop of its construction."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolver = Resolver()
        self._reached: dict[str, str] = {}  # host -> address
        self.peers: dict[tuple[str, int], tuple[str, int]] = {}  # last peer of each (host, port)

    async def connect(
        self, node: Endpoint, make: Callable[[], P], context: ssl.SSLContext | None, within_s: float | None
    ) -> P:
        """Return the protocol of a new connection.

        Raises:
            NameTimeout: The name was not resolved in time.
            TimeoutError: No address accepted in time.
            OSError: All addresses failed, or the name is unknown.
            UnicodeError: The name is malformed.
        """
        host = node.host
        resolved = False
        try:
            async with asyncio.timeout(within_s):
                addresses = await self._resolver.resolve(host)
                resolved = True
                return await self._race(node, self._ordered(host, addresses), make, context)
        except TimeoutError:
            if not resolved:
                raise NameTimeout from None
            self._resolver.invalidate(host)
            raise
        except OSError:
            self._resolver.invalidate(host)
            raise

    def _ordered(self, host: str, addresses: Addresses) -> list[str]:
        """Return the addresses to try: the last reached one, then alternating families, the system's choice first."""
        last = self._reached.get(host)
        families = alternating(address for address in addresses if address != last)
        return [last, *families] if last in addresses and last is not None else families

    async def _race(
        self, node: Endpoint, addresses: Sequence[str], make: Callable[[], P], context: ssl.SSLContext | None
    ) -> P:
        if len(addresses) == 1:
            return await self._open(node, addresses[0], make, context)
        waiting = list(addresses)
        trying: dict[asyncio.Task[P], str] = {}
        errors: list[OSError] = []
        try:
            while waiting or trying:
                if waiting:
                    address = waiting.pop(0)
                    trying[self._loop.create_task(self._open(node, address, make, context))] = address
                done, _ = await asyncio.wait(
                    trying, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    error = task.exception()
                    if error is None:
                        self._remember(node.host, trying.pop(task))
                        return task.result()
                    if not isinstance(error, OSError):
                        raise error
                    del trying[task]
                    errors.append(error)
        finally:
            for task in trying:
                task.add_done_callback(_close)
                task.cancel()
        raise _together(errors)

    async def _open(self, node: Endpoint, address: str, make: Callable[[], P], context: ssl.SSLContext | None) -> P:
        name = node.host.partition("%")[0] if context is not None else None
        transport, protocol = await self._loop.create_connection(
            make, address, node.port, ssl=context, server_hostname=name
        )
        keep_alive(transport.get_extra_info("socket"))
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer and own:
            if len(self.peers) >= 4096:
                self.peers.clear()
            # All addresses of this machine, loopback included, count as one place.
            here = peer[0] == own[0] or peer[0] in ("127.0.0.1", "::1")
            self.peers[node.host, node.port] = ("this machine" if here else str(peer[0]), int(peer[1]))
        return protocol

    def _remember(self, host: str, address: str) -> None:
        if len(self._reached) >= 4096:
            self._reached.clear()
        self._reached[host] = address


class NameTimeout(TimeoutError):
    """The name was not resolved in time; the look-up continues."""


def alternating(addresses: Iterable[str]) -> list[str]:
    """Return the addresses with alternating families, beginning with the family of the first."""
    listed = list(addresses)
    if not listed:
        return []
    first = ":" in listed[0]
    ours = [address for address in listed if (":" in address) is first]
    others = [address for address in listed if (":" in address) is not first]
    return [address for address in chain.from_iterable(zip_longest(ours, others)) if address is not None]


def keep_alive(sock: Any) -> None:
    """Enable TCP keep-alive, which detects a peer that is gone and tolerates a silent one."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _ALIVE:
            if hasattr(socket, name):  # some systems lack some
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    except (AttributeError, OSError):  # not a TCP socket
        pass


def _close(task: asyncio.Task[P]) -> None:
    """Close a connection that lost the race."""
    if not task.cancelled() and task.exception() is None:
        abort = getattr(task.result(), "abort", None)
        if abort is not None:
            abort()


def _together(errors: Sequence[OSError]) -> OSError:
    """Return one error for all addresses: the first if they agree in kind, else one with all messages."""
    first = errors[0]
    if all(type(error) is type(first) for error in errors):
        return first
    return OSError("; ".join(dict.fromkeys(str(error) for error in errors)))
