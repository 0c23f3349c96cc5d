"""Resolve host names to addresses without blocking a loop, an exit, or the look-ups of other names.

Only `getaddrinfo` uses all sources that users expect (`/etc/hosts`, search domains, mDNS), and it blocks for 10 s and
more when a name server is dead. It has no timeout and cannot be cancelled. In an event loop's own threads, a few dead
names block all others; asyncio waits for those threads at its end, and uvloop crashes when it is closed before they
return.

So each look-up has a daemon thread, at most one for a name, and the exit does not wait for it. A result is fresh for
FRESH_S (`getaddrinfo` does not return the time to live); after that it is still used while one look-up runs in the
background. A look-up continues after its callers' timeouts, so a slow name is resolved at the next try. Names that were
slow before can hold only SLOW_LOOKUPS of the threads.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import deque
from functools import partial
from math import inf
from typing import Final

from sollol.duties import in_thread, log_fault

FRESH_S: Final = 30.0  # the same as in many name servers and the Java runtime
STALE_WAIT_S: Final = 0.1  # wait for a new result before an older one is used
RETRY_S: Final = 1.0  # between two look-ups of a name that failed
DENIALS: Final = 2  # denials in a row after which the addresses of a name are dropped
LOOKUPS: Final = 128  # threads at most; each waits in the system's resolver
SLOW_LOOKUPS: Final = 16  # of them for names that took longer than SLOW_S
SLOW_S: Final = 1.0
NAMES: Final = 4096  # names kept

Addresses = tuple[str, ...]  # with the zone of a link-local one ("fe80::1%2")


class _Name:
    """State of one name."""

    __slots__ = (
        "addresses",
        "denials",
        "error",
        "found_at",
        "host",
        "running",
        "slow",
        "started_at",
        "tried_at",
        "waiters",
    )

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: Addresses = ()
        self.found_at = -inf
        self.error: OSError | UnicodeError | None = None  # of the last look-up
        self.tried_at = -inf  # when the last look-up ended
        self.started_at = -inf
        self.running = False
        self.slow = False
        self.denials = 0
        self.waiters: list[asyncio.Future[None]] = []


class Resolver:
    """Resolve host names for the event loop of its construction."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._names: dict[str, _Name] = {}
        self._queue: deque[_Name] = deque()  # look-ups that wait for a thread
        self._slow_queue: deque[_Name] = deque()
        self._threads = self._slow_threads = 0

    async def resolve(self, host: str) -> Addresses:
        """Return the addresses of a host, the system's preferred one first.

        Raises:
            OSError: The name cannot be resolved.
            UnicodeError: The name is malformed.
        """
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return (host,)
        name = self._names.get(host) or self._add(host)
        now = self._loop.time()
        if name.addresses and now - name.found_at < FRESH_S:
            return name.addresses
        failed = name.error is not None and now - name.tried_at < RETRY_S
        if not name.running and not failed:
            self._start(name)
        if name.addresses:
            if name.running:
                await self._wait(name, name.started_at + STALE_WAIT_S - now)
        elif name.running:
            await self._wait(name, None)
        if not name.addresses and name.error is not None:
            raise name.error.with_traceback(None)
        return name.addresses

    def invalidate(self, host: str) -> None:
        """Resolve a name again at its next use, since none of its addresses could be reached."""
        name = self._names.get(host)
        if name is not None:
            name.found_at = -inf

    def _add(self, host: str) -> _Name:
        if len(self._names) >= NAMES:
            self._names = {key: name for key, name in self._names.items() if name.running}
        name = self._names[host] = _Name(host)
        return name

    async def _wait(self, name: _Name, within_s: float | None) -> None:
        """Wait for the end of a look-up, at most `within_s`."""
        if within_s is not None and within_s <= 0:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        name.waiters.append(waiter)
        try:
            async with asyncio.timeout(within_s):
                await waiter
        except TimeoutError:
            if within_s is None:
                raise
        finally:
            if waiter in name.waiters:
                name.waiters.remove(waiter)

    # --- threads ---

    def _start(self, name: _Name) -> None:
        name.running = True
        name.started_at = self._loop.time()
        (self._slow_queue if name.slow else self._queue).append(name)
        self._fill()

    def _fill(self) -> None:
        """Start waiting look-ups while threads are free."""
        while self._threads < LOOKUPS and (self._queue or (self._slow_queue and self._slow_threads < SLOW_LOOKUPS)):
            name = self._queue.popleft() if self._queue else self._slow_queue.popleft()
            slow = name.slow
            self._threads += 1
            self._slow_threads += slow
            try:
                in_thread("sollol-names", partial(_look_up, self, self._loop, name.host, slow))
            except RuntimeError as error:  # the system is out of threads
                self.ended(name.host, slow, (), OSError(f"no thread to look {name.host} up: {error}"))

    def ended(self, host: str, slow: bool, addresses: Addresses, error: OSError | UnicodeError | None) -> None:
        """Store the result of a look-up. Called on the loop."""
        self._threads -= 1
        self._slow_threads -= slow
        name = self._names.get(host)
        if name is not None:
            name.running = False
            name.tried_at = now = self._loop.time()
            name.slow = now - name.started_at > SLOW_S
            name.error = error
            if error is None:
                name.addresses, name.found_at, name.denials = addresses, now, 0
            elif isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                name.denials += 1
                if name.denials >= DENIALS:
                    name.addresses = ()
            waiters, name.waiters = name.waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)
        self._fill()


def _look_up(resolver: Resolver, loop: asyncio.AbstractEventLoop, host: str, slow: bool) -> None:
    """Call `getaddrinfo` in this thread; report the result to the resolver."""
    found: Addresses = ()
    failed: OSError | UnicodeError | None = None
    try:
        found = tuple(dict.fromkeys(_text(row[4]) for row in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))
        if not found:
            failed = socket.gaierror(socket.EAI_NONAME, "no address")
    except (OSError, UnicodeError) as error:
        failed = error.with_traceback(None)
    except Exception as error:  # the callers that wait must get a result
        log_fault(f"looking {host} up", error)
        failed = OSError(f"{type(error).__name__}: {error}")
    try:
        loop.call_soon_threadsafe(resolver.ended, host, slow, found, failed)
    except RuntimeError:  # the loop is closed
        pass


def _text(address: tuple[object, ...]) -> str:
    """Return the address as text, with the zone of a link-local one."""
    zone = address[3] if len(address) == 4 else 0
    text = str(address[0])
    return f"{text}%{zone}" if zone and "%" not in text else text
