"""Measure the work of a node in machine time, and register everything that waits there.

Machine time is the integral of speed over the loop's time. A node that is slowed down, frozen or thawed in the middle
of an answer changes the slope; work under way ends when its share of machine time has passed, exactly. All waits are
registered, so a node that dies can end them all without a task of its own.
"""

from __future__ import annotations

import asyncio
from typing import Any

_DONE_S = 6e-7  # less than this is no work: half a microsecond, the grid of simulated time


class NodeDied(Exception):
    """The node died while this was waiting for it."""


class Machine:
    """Hold the clock of work and the register of waits. It belongs to one event loop from its first wait on."""

    def __init__(self) -> None:
        self._speed = 1.0
        self._frozen = False
        self._since_s: float | None = None
        self._worked_s = 0.0
        self._waits: dict[asyncio.Future[Any], bool] = {}

    @property
    def frozen(self) -> bool:
        """Return whether work stands still."""
        return self._frozen

    def now(self) -> float:
        """Return the machine time in seconds."""
        at = asyncio.get_running_loop().time()
        if self._since_s is None:
            self._since_s = at
        return self._worked_s + (at - self._since_s) * (0.0 if self._frozen else self._speed)

    def set_pace(self, *, slow: float | None = None, frozen: bool | None = None) -> None:
        """Change the speed, also of work under way. `slow` 3 means three times slower."""
        if self._since_s is not None:  # else nothing has been done yet, and there may be no loop
            self._worked_s = self.now()
            self._since_s = asyncio.get_running_loop().time()
        if slow is not None:
            self._speed = 1.0 / slow
        if frozen is not None:
            self._frozen = frozen
        for wait, is_work in list(self._waits.items()):
            if is_work and not wait.done():
                wait.set_result(None)

    async def work(self, seconds: float) -> None:
        """Wait for so many seconds of machine time."""
        if seconds > 0 or self._frozen:
            await self.until(self.now() + seconds)

    async def until(self, target_s: float) -> None:
        """Wait until machine time reaches `target_s`; while frozen, wait without end."""
        while True:
            left = target_s - self.now()
            if self._frozen:
                await self.wait(is_work=True)
            elif left <= _DONE_S:
                return
            else:
                await self._sleep(left / self._speed)

    async def _sleep(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        wake: asyncio.Future[None] = loop.create_future()
        self._waits[wake] = True
        timer = loop.call_later(seconds, _wake, wake)
        try:
            await wake
        finally:
            timer.cancel()
            self._waits.pop(wake, None)

    async def wait(self, future: asyncio.Future[Any] | None = None, *, is_work: bool = False) -> None:
        """Wait for `future` (None: for ever), or for the node's death."""
        wake = future if future is not None else asyncio.get_running_loop().create_future()
        self._waits[wake] = is_work
        try:
            await wake
        finally:
            self._waits.pop(wake, None)

    def cut(self) -> None:
        """End every wait with NodeDied."""
        waits, self._waits = self._waits, {}
        for wait in waits:
            if not wait.done():
                wait.set_exception(NodeDied("the node died"))


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
