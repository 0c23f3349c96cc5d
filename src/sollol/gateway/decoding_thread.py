"""Decode large bodies in one thread, so that the event loop serves other clients meanwhile."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sollol.http_server.intake import Intake

T = TypeVar("T")
SWITCH_S: Final = 0.0005  # interval between thread switches while a body is decoded; Python's default is 5 ms
PAUSE_FROM_S: Final = 0.005  # duration of a decoding after which the next large body waits
PAUSE_FACTOR: Final = 4  # that pause, as a multiple of the duration


class DecodingThread:
    """Run one decoding at a time, because decoding takes memory, too."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._executor = ThreadPoolExecutor(1, "sollol-bodies")
        self._running = 0
        self._switch_s = 0.0  # the interval before the first running call

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Return the result of `work(*arguments)`, called in the thread."""
        self._intake.decodes()
        if not self._running:
            self._switch_s = sys.getswitchinterval()
            sys.setswitchinterval(min(self._switch_s, SWITCH_S))
        self._running += 1
        loop, took_s = asyncio.get_running_loop(), [0.0]
        try:
            return await loop.run_in_executor(self._executor, _timed, took_s, work, *arguments)
        finally:
            self._running -= 1
            if not self._running:
                sys.setswitchinterval(self._switch_s)
            if took_s[0] > PAUSE_FROM_S:  # large bodies must not use all the time of a core
                loop.call_later(PAUSE_FACTOR * took_s[0], self._intake.decoded)
            else:
                self._intake.decoded()

    def close(self) -> None:
        """Drop the calls that wait, and let the running one end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _timed(took_s: list[float], work: Callable[..., T], *arguments: Any) -> T:
    """Return the result of `work(*arguments)`, and store its duration in `took_s`."""
    began = time.perf_counter()
    try:
        return work(*arguments)
    finally:
        took_s[0] = time.perf_counter() - began
