"""Limit retries by a budget, not a count (tower's retry/budget).

A count multiplies the load of a cluster that is failing; a budget caps the extra load at a share of the traffic. Every
submitted task deposits `share` of a retry; `reserve` is there from the start, so that a quiet service and the first
request of a program can fail over too. A busy node (503) costs no budget: waiting is no load. Each application has a
budget of its own.
"""

from __future__ import annotations

from typing import Final
from zlib import crc32

from sollol.core.types import MILLISECOND, SECOND, Micros, Outcome, Status, Task

SHARE: Final = 0.2
RESERVE: Final = 20.0
CAPACITY: Final = 200.0
BUDGETS: Final = 256  # one for each application, as far as their names fall into different ones
MAX_TRIES: Final = 6
BUSY_TRIES: Final = 12  # with the pauses below: about 15 s of a node saying that it is busy
BUSY_PAUSE: Final[Micros] = 50 * MILLISECOND
BUSY_PAUSE_MAX: Final[Micros] = 2 * SECOND


def busy_pause(times: int) -> Micros:
    """Return the µs to pause a node after its `times`-th 503 in a row."""
    return min(BUSY_PAUSE << min(times, 10), BUSY_PAUSE_MAX)


class BudgetRetrier:
    """Retry a task on other nodes while its application has budget."""

    __slots__ = ("_app", "_busy_tries", "_capacity", "_place", "_share", "_tokens", "_tries_most")

    def __init__(
        self,
        *,
        share: float = SHARE,
        reserve: float = RESERVE,
        capacity: float = CAPACITY,
        tries_most: int = MAX_TRIES,
        busy_tries: int = BUSY_TRIES,
    ) -> None:
        self._share = share
        self._capacity = capacity
        self._tries_most = tries_most
        self._busy_tries = busy_tries
        self._tokens = [reserve] * BUDGETS
        self._app, self._place = "", 0  # of the last task; the next one is often of the same

    def _of(self, task: Task) -> int:
        """Return the place of the budget of a task's application."""
        if task.app != self._app:
            self._app, self._place = task.app, crc32(task.app.encode("utf-8", "replace")) % BUDGETS
        return self._place

    def deposit(self, task: Task) -> None:
        """Add `share` of a retry to the budget."""
        place = self._of(task)
        if self._tokens[place] < self._capacity:
            self._tokens[place] += self._share

    def again(self, task: Task, outcome: Outcome, tried: int, now: Micros) -> Micros | None:
        """Return the µs to wait before the next try, or None to give up."""
        if outcome.status is Status.BUSY:
            return busy_pause(tried) if tried < self._busy_tries else None
        if outcome.status in (Status.MISSING, Status.UNABLE):  # nothing was tried: another may have it
            return 0
        place = self._of(task)
        if tried >= self._tries_most or self._tokens[place] < 1:
            return None
        self._tokens[place] -= 1
        return 0
