"""One lazy timer for everything that a connection waits for.

The obvious way, a timer for each call, costs two operations on the loop's timers a call, for timeouts that
almost never come. Here a call only writes its deadline down. The timer, when it fires before the deadline,
sleeps on until then; it is moved only when a deadline is earlier than the timer. A connection in use so
touches the loop's timers about once a minute.

A stall of our own loop must not be blamed on the node: libuv runs timers before it reads sockets, so after
a stall the answer may lie unread. A timer that fires late therefore looks again a moment later.
"""

from __future__ import annotations

import asyncio
from math import inf
from typing import Final

TICK_S: Final = 0.001  # the grain of libuv's timers
STALL_S: Final = 0.05  # a timer this late says that our loop was busy, not that the node was silent
GRACE_S: Final = 0.01  # when to look again then


class Deadline:
    """A base for what waits: `expect` something, and `overdue` is called if the time runs out first."""

    __slots__ = ("_deadline", "_timer", "_timer_at", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._deadline = self._timer_at = inf
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, within_s: float | None) -> None:
        """Replaces what was expected before. None: no bound."""
        if within_s is None:
            self._deadline = inf
            return
        deadline = self._deadline = self.loop.time() + within_s
        if deadline < self._timer_at:
            self._wake_at(deadline)

    def overdue(self) -> None:
        raise NotImplementedError

    def stop_timer(self) -> None:
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
