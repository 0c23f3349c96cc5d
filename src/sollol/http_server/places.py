"""Limit the connections of clients, and choose the one to close for a new one.

Each stream needs a descriptor for its client and one for its node, so clients get half of those that this process may
open. A connection is a stranger until one of its requests is accepted: with a key where keys are required, complete
where they are not. A stranger that has had time to send a request is closed first. Strangers may hold half of all
places; up to that, idle connections are closed for them. A connection whose request is being answered stays open.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sollol.http_server.connection import ClientConnection

LEAVING: Final = 64  # connections without a place that are read further, so that their refusal arrives
OTHER_FILES: Final = LEAVING + 64  # descriptors; 64 for the log, the keys, the loop and listening
GRACE_S: Final = 0.1  # time of a new connection to send its first request
A_TURN: Final = 4  # connections in line that are served in a turn of the loop
AHEAD_SHARE: Final = 0.15  # of the time goes to parsing and starting pipelined requests,
AHEAD_BURST_S: Final = 0.05  # after so long
BACKLOG: Final = 4096  # connections that wait to be accepted


def descriptors() -> int:
    """Return the number of files this process may have open; `sys.maxsize` where there is no bound."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def places_within(descriptors: int) -> int:
    """Return the number of clients that these descriptors allow, with one each for their nodes."""
    return max(1, (descriptors - OTHER_FILES) // 2)


def backlog_within(descriptors: int) -> int:
    """Return the number of connections to accept in one turn of the loop, before any can be refused."""
    return max(16, min(BACKLOG, places_within(descriptors) // 2))


class Line:
    """Serve a few waiting connections in each turn of the loop.

    First requests of connections and pipelined requests wait here. Hundreds may arrive at once, and clients that send
    one request after the other are answered between them. Serving pipelined requests takes a share of the time, since
    a client can send thousands in one write, and nodes may compute on the same machine.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = perf_counter) -> None:
        self._loop = loop
        self._clock = clock
        self._left = A_TURN
        self._new: deque[ClientConnection] = deque()
        self._ahead: deque[ClientConnection] = deque()  # connections with pipelined requests
        self._spent_s = self._spent_at = 0.0  # on the latter, above their share
        self._is_due = self._pauses = False

    def admit(self, connection: ClientConnection) -> bool:
        """Check whether a new connection may go on at once; if not, put it in line."""
        if self._left and not self._new:
            self._left -= 1
            self._call()
            return True
        self._new.append(connection)
        self._call()
        return False

    def stand(self, connection: ClientConnection) -> None:
        """Call `take_turn` of a connection with pipelined requests in a later turn of the loop."""
        self._ahead.append(connection)
        if not self._pauses:
            self._call()

    def _call(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._left = A_TURN
        self._is_due = False
        while self._left and self._new:
            self._left -= 1
            self._new.popleft().take_turn()
        if self._left and self._ahead and not self._pauses:
            self._serve_ahead()
        if self._new or (self._ahead and not self._pauses):
            self._call()

    def _serve_ahead(self) -> None:
        began = self._clock()
        while self._left and self._ahead:
            self._left -= 1
            self._ahead.popleft().take_turn()
        now = self._clock()
        self._spent_s = max(0.0, self._spent_s - AHEAD_SHARE * (began - self._spent_at)) + now - began
        self._spent_at = now
        if self._spent_s > AHEAD_BURST_S:
            self._pauses = True
            self._loop.call_later((self._spent_s - AHEAD_BURST_S) / AHEAD_SHARE, self._go_on)

    def _go_on(self) -> None:
        self._pauses = False
        if self._ahead:
            self._call()


class Places:
    """Hold the open connections, strangers apart."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._strangers: dict[ClientConnection, float] = {}  # time of their start, the oldest first
        self._proven: set[ClientConnection] = set()
        self._leaving: set[ClientConnection] = set()

    def __len__(self) -> int:
        return len(self._strangers) + len(self._proven)

    def all(self) -> list[ClientConnection]:
        """Return all connections, with those that have no place and are still read."""
        return [*self._strangers, *self._proven, *self._leaving]

    @property
    def strangers(self) -> int:
        """Return the number of strangers."""
        return len(self._strangers)

    def take(self, connection: ClientConnection, now: float) -> bool:
        """Give a new connection a place; return False where there is none."""
        if len(self) >= self.limit:
            closing = self._to_close(now)
            if closing is None:
                return False
            self.leave(closing)
            closing.give_way()  # which may call `may_linger`
        self._strangers[connection] = now
        return True

    def _to_close(self, now: float) -> ClientConnection | None:
        for stranger, since in self._strangers.items():
            if now - since < GRACE_S:
                break
            if not stranger.is_answering:
                return stranger
        if 2 * len(self._strangers) < self.limit:
            idle = [connection for connection in self._proven if not connection.is_answering]
            return min(idle, key=_deadline, default=None)  # idle for the longest
        return None

    def prove(self, connection: ClientConnection) -> None:
        """Record that a request of this connection was accepted."""
        if self._strangers.pop(connection, None) is not None:
            self._proven.add(connection)

    def may_linger(self, connection: ClientConnection) -> bool:
        """Check whether a connection without a place may be read further, so that its refusal arrives."""
        if len(self._leaving) >= LEAVING:
            return False
        self._leaving.add(connection)
        return True

    def leave(self, connection: ClientConnection) -> None:
        """Remove a connection."""
        self._strangers.pop(connection, None)
        self._proven.discard(connection)
        self._leaving.discard(connection)


def _deadline(connection: ClientConnection) -> float:
    return connection.deadline
