"""One lazy timer for all deadlines of a connection.

A timer for each call costs two operations on the loop's timers, for timeouts that almost never happen. Here a call only
stores its deadline. A timer that fires before the deadline is set again; it is moved only when a deadline is earlier
than the timer. A connection in use so changes the loop's timers about once a minute.

A stall of our own loop must not count against the node: libuv runs timers before it reads sockets, so after a stall the
answer may lie unread. A timer that fires late therefore checks again a moment later.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final

TICK_S: Final = 0.001  # resolution of libuv's timers
STALL_S: Final = 0.05  # a timer this late means that our loop was busy, not that the node was silent
GRACE_S: Final = 0.01  # delay of the second check


class Deadline:
    """Base of objects with a deadline: `expect` sets it, `overdue` is called when it passes."""

    __slots__ = ("_deadline", "_timer", "_timer_at", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._deadline = self._timer_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, within_s: float | None) -> None:
        """Set the deadline `within_s` seconds from now, replacing the last one. None: no deadline."""
        if within_s is None:
            self._deadline = inf
            return
        deadline = self._deadline = self.loop.time() + within_s
        if deadline < self._timer_at:
            self._wake_at(deadline)

    def overdue(self) -> None:
        """Handle a passed deadline."""
        raise NotImplementedError

    def stop_timer(self) -> None:
        """Cancel the timer and the deadline."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at, self._deadline = None, inf, inf

    def _wake_at(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = self.loop.call_at(at, self._on_timer)

    def _on_timer(self) -> None:
        now, due = self.loop.time(), self._timer_at
        self._timer, self._timer_at = None, inf
        if self._deadline == inf:
            return
        if now + TICK_S < self._deadline:
            self._wake_at(self._deadline)
        elif now - due > STALL_S:
            self._wake_at(now + GRACE_S)
        else:
            self.overdue()
