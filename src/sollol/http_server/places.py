"""Connections of clients: how many there may be, and which one goes when a new one finds no place.

Each stream needs a descriptor for its client and one for its node, so clients get half of those that this process may
open. A connection is a stranger's until a request of its own was accepted: with a key where keys are asked for, whole
where they are not. A stranger that has had time to send a request goes before anybody else. Strangers may have half of
all places; for these, a connection that is idle goes, too. One whose request is being answered never goes.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sollol.http_server.connection import ClientConnection

LEAVING: Final = 64  # connections that have no place, and are still read so that their refusal arrives
OTHER_FILES: Final = LEAVING + 64  # descriptors, these for the log, the keys, the loop and listening
GRACE_S: Final = 0.1  # in which a new connection can send its first request
A_TURN: Final = 4  # connections in line that are served in a turn of the loop
BACKLOG: Final = 4096  # connections that wait to be accepted


def descriptors() -> int:
    """Return how many files this process may open at a time; a large number where there is no bound."""
    if sys.platform == "win32":
        return sys.maxsize
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def places_within(descriptors: int) -> int:
    """Return how many clients so many descriptors are enough for, with one each for their nodes."""
    return max(1, (descriptors - OTHER_FILES) // 2)


def backlog_within(descriptors: int) -> int:
    """Return how many connections may be accepted in one turn of the loop, before any of them can be refused."""
    return max(16, min(BACKLOG, places_within(descriptors) // 2))


class Line:
    """Connections with something to parse or to answer that has to wait: a few in each turn of the loop.

    First requests of connections, and requests that were sent before the answers to earlier ones: hundreds may come at
    once, and those who ask one after the other are answered between them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left = A_TURN
        self._waiting: deque[ClientConnection] = deque()
        self._is_due = False

    def admit(self, connection: ClientConnection) -> bool:
        """Check whether `connection` may go on at once. False: it stands in line."""
        if self._left and not self._waiting:
            self._left -= 1
            self._call()
            return True
        self.stand(connection)
        return False

    def stand(self, connection: ClientConnection) -> None:
        """Call `take_turn` of `connection` in a later turn of the loop."""
        self._waiting.append(connection)
        self._call()

    def _call(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._left = A_TURN
        self._is_due = False
        while self._left and self._waiting:
            self._left -= 1
            self._waiting.popleft().take_turn()
        if self._waiting:
            self._call()


class Places:
    """The open connections, strangers apart."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._strangers: dict[ClientConnection, float] = {}  # since when, the oldest first
        self._proven: set[ClientConnection] = set()
        self._leaving: set[ClientConnection] = set()

    def __len__(self) -> int:
        return len(self._strangers) + len(self._proven)

    def all(self) -> list[ClientConnection]:
        return [*self._strangers, *self._proven, *self._leaving]

    @property
    def strangers(self) -> int:
        return len(self._strangers)

    def take(self, connection: ClientConnection, now: float) -> bool:
        """Give a new connection a place. False: there is none."""
        if len(self) >= self.limit:
            goes = self._to_go(now)
            if goes is None:
                return False
            self.leave(goes)
            goes.give_way()  # which may make it one that leaves
        self._strangers[connection] = now
        return True

    def _to_go(self, now: float) -> ClientConnection | None:
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
        """A request of this connection was accepted."""
        if self._strangers.pop(connection, None) is not None:
            self._proven.add(connection)

    def may_linger(self, connection: ClientConnection) -> bool:
        """Check whether a connection that has no place may be read a little longer."""
        if len(self._leaving) >= LEAVING:
            return False
        self._leaving.add(connection)
        return True

    def leave(self, connection: ClientConnection) -> None:
        self._strangers.pop(connection, None)
        self._proven.discard(connection)
        self._leaving.discard(connection)


def _deadline(connection: ClientConnection) -> float:
    return connection.deadline
